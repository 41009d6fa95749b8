// What goes wrong in a kernel ends the launch, not the process: bad addresses, integer division by zero, too much local
// memory, abort and exit, loops without an end, and Ctrl-C.
//
// Only while a launch runs, its thread has handlers of its own for the signals that the system sends for such things. A
// handler notes what happened, and leaves the kernel by a jump, as a thread does that waits; its stack is never used
// again. Who had handlers before, Python's faulthandler for one, has them back afterwards.
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "runtime.h"

namespace cudasim {

namespace {

constexpr int FAULTS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
constexpr int TICK = SIGVTALRM;  // of a clock that runs while the process computes
constexpr long TICK_MICROSECONDS = 50000;

struct sigaction before[NSIG];
itimerval clock_before;
stack_t stack_before;
alignas(16) char stack_of_handlers[64 << 10];  // the kernel's own may be full
pthread_t launcher;

struct Fault { int signal, code; const char *address, *pc; Thread thread; };
Fault fault;                  // signal is 0 if there was none
volatile sig_atomic_t stop;   // TICK or SIGINT: the kernel is to end
volatile unsigned long blocks, blocks_seen;
double limit, block_since;
int ticks_since_stop;

double seconds_computed() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

const char* pc_of(void* context) {
    auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined __linux__ && defined __x86_64__
    return reinterpret_cast<const char*>(machine.gregs[REG_RIP]);
#elif defined __linux__ && defined __aarch64__
    return reinterpret_cast<const char*>(machine.pc);
#elif defined __APPLE__ && defined __aarch64__
    return reinterpret_cast<const char*>(machine->__ss.__pc);
#else
    (void)machine;
    return nullptr;
#endif
}

bool in_this_library(const char* pc) {
    Dl_info info;
    return pc && dladdr(pc, &info) && reinterpret_cast<size_t>(info.dli_fbase) == cudasim_image();
}

// A kernel that calls nothing can be left anywhere. One that is in the C library may hold a lock there, so it is given
// until the next tick; and one that comes to the simulator's own functions is stopped by these.
void tick(const char* pc) {
    if (blocks_seen != blocks) blocks_seen = blocks, block_since = seconds_computed();
    if (!stop && seconds_computed() - block_since > limit) stop = TICK;
    if (stop && ++ticks_since_stop > 1 && cudasim_thread && in_this_library(pc)) {
        Signals::leave(const_cast<char*>(pc) + 1);
    }
}

void handle(int signal, siginfo_t* info, void* context) {
    const int errno_before = errno;
    const bool asked = signal == TICK || signal == SIGINT;
    if (!pthread_equal(pthread_self(), launcher)) {
        if (asked) pthread_kill(launcher, signal);
        else sigaction(signal, &before[signal], nullptr);  // no kernel's: it comes again, to whom it belongs
    } else if (signal == TICK) {
        tick(pc_of(context));
    } else if (signal == SIGINT) {
        stop = SIGINT;
    } else if (cudasim_thread) {
        fault = {signal, info->si_code, static_cast<const char*>(info->si_addr), pc_of(context), *cudasim_thread};
        leave_kernel();
    } else {
        sigaction(signal, &before[signal], nullptr);
    }
    errno = errno_before;
}

void catch_signal(int signal) {
    struct sigaction mine = {};
    mine.sa_sigaction = handle;
    mine.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART;  // not deferred: who jumps away never returns
    sigaction(signal, &mine, &before[signal]);
}

std::string in_line(const char* pc) {
    if (!in_this_library(pc)) return "";
    char text[32];  // as in watch.cpp; of an instruction itself, not of what comes after a call
    snprintf(text, sizeof text, ", in @%zx@", reinterpret_cast<size_t>(pc) - cudasim_image());
    return text;
}

std::string what_happened() {
    char text[100];
    switch (fault.signal) {
    case SIGSEGV: case SIGBUS:
        if (in_a_guard(fault.address)) {
            return " needs more than 512 KiB of local memory (large arrays, or calls within calls without an end)";
        }
        snprintf(text, sizeof text, " uses address %p, where there is no memory", fault.address);
        return std::string(text) + " of its own: memcheck says which array it missed";
    case SIGFPE: return " divides an integer by zero, or the least integer by -1; on a GPU the result has no meaning";
    case SIGILL: case SIGTRAP: return " came to a place where the compiler, or the kernel, put a trap";
    default: return " called abort, or threw an exception";
    }
}

}  // namespace

Signals::Signals(double seconds) {
    launcher = pthread_self(), limit = seconds, fault = {}, stop = 0, ticks_since_stop = 0;
    blocks = blocks_seen = 0, block_since = seconds_computed();
    stack_t mine = {};
    mine.ss_sp = stack_of_handlers, mine.ss_size = sizeof stack_of_handlers;
    sigaltstack(&mine, &stack_before);
    for (int signal : FAULTS) catch_signal(signal);
    catch_signal(TICK), catch_signal(SIGINT);
    if (before[SIGINT].sa_handler == SIG_IGN) sigaction(SIGINT, &before[SIGINT], nullptr);
    const itimerval ticks = {{0, TICK_MICROSECONDS}, {0, TICK_MICROSECONDS}};
    setitimer(ITIMER_VIRTUAL, &ticks, &clock_before);
}

Signals::~Signals() {
    setitimer(ITIMER_VIRTUAL, &clock_before, nullptr);
    for (int signal : FAULTS) sigaction(signal, &before[signal], nullptr);
    sigaction(TICK, &before[TICK], nullptr), sigaction(SIGINT, &before[SIGINT], nullptr);
    if (stack_before.ss_flags & SS_DISABLE || stack_before.ss_size) sigaltstack(&stack_before, nullptr);
    if (stop == SIGINT) raise(SIGINT);  // now for Python
}

void Signals::next_block() { blocks = blocks + 1; }

bool Signals::stopped() { return stop || fault.signal; }

void Signals::leave(void* pc) {
    fault = {0, 0, nullptr, static_cast<const char*>(pc) - 1, *cudasim_thread};
    leave_kernel();
}

std::string Signals::why(const Thread& last, const std::string& place, bool meets) {
    if (stop == SIGINT) return "stopped by Ctrl-C";
    if (fault.signal) return full_name_of(fault.thread) + what_happened() + in_line(fault.pc);
    char seconds[32];
    snprintf(seconds, sizeof seconds, "%g s", limit);
    return std::string("no end: a block has computed for ") + seconds + ", and still does, as " +
           full_name_of(fault.pc ? fault.thread : last) + (fault.pc && !meets ? in_line(fault.pc) : ", at " + place) +
           "; checking(seconds=...) gives it longer";
}

// ---- What a kernel could call to end the process: these hide the C library's ----

#define CUDASIM_ENDS_THE_LAUNCH(name, ...)                                                              \
    extern "C" __attribute__((visibility("hidden"), noreturn)) void name(__VA_ARGS__) noexcept {        \
        const char* pc = static_cast<const char*>(__builtin_return_address(0)) - 1;                     \
        fail(full_name_of(*cudasim_thread) + " called " #name + in_line(pc));                           \
        __builtin_unreachable();                                                                        \
    }
CUDASIM_ENDS_THE_LAUNCH(abort)
CUDASIM_ENDS_THE_LAUNCH(exit, int)
CUDASIM_ENDS_THE_LAUNCH(_exit, int)
CUDASIM_ENDS_THE_LAUNCH(_Exit, int)
CUDASIM_ENDS_THE_LAUNCH(quick_exit, int)

}  // namespace cudasim
