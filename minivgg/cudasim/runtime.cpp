// Runs a kernel's blocks one after another, and of a block's threads one at a time, each on a stack of its own.
//
// A thread runs until it waits: at a barrier, or for the other lanes of its warp. Then the next one that can go on does
// (a jump from one stack to another, some ten nanoseconds). The order in which threads, and blocks, get their turn is
// the caller's: a right kernel's answer does not depend on it.
#include "runtime.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <random>
#include <vector>

namespace cudasim {

namespace {

enum State { READY, AT_BARRIER, AT_MEETING, DONE };

struct Copy { void* to; const void* from; int size, group; void* pc; };

struct Fiber : Thread {
    jmp_buf place;
    bool started = false;
    State state;
    Where where{};
    int kind, predicate, *answer;  // at a barrier
    unsigned mask;            // at a meeting
    const char* what;
    void* record;
    void (*together)(void**, unsigned);
    std::vector<Copy> copies;
    int groups = 0;
};

// CUDA's limit of local memory, room for the functions that a kernel is called by and calls, and a gap that nobody may
// touch: -fstack-clash-protection has large frames touch each page in turn, so that none is jumped over.
constexpr size_t LOCAL = 512 << 10, ROOM = 64 << 10, GUARD = 64 << 10, STACK = GUARD + ROOM + LOCAL;

// One for the process, whose kernels lie in many libraries, each with a runtime of its own: a guard page cuts memory in
// two, and Linux allows 65,530 pieces.
struct Stacks {
    char* memory;
    size_t size;
};

std::vector<Fiber> fibers;
Stacks* stacks;
jmp_buf scheduler;
ucontext_t scheduler_context, fiber_context;
void (*kernel)(void**);
void** arguments;
std::vector<char> dynamic_shared;
std::string error;
std::mt19937_64 random_bits;

extern "C" {
// The ends of the section that __shared__ arrays lie in, by the linker; null if there is none.
extern char __start_cudasim_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cudasim_shared[] __attribute__((weak, visibility("hidden")));
}

Fiber& running() { return *static_cast<Fiber*>(cudasim_thread); }

void step_aside() {
    if (!_setjmp(running().place)) _longjmp(scheduler, 1);
}

// The stacks stay from launch to launch: their first touch, a page fault a thread, costs more than a small launch.
bool provide_stacks(size_t size) {
    if (size <= stacks->size) return true;
    if (stacks->size) munmap(stacks->memory, stacks->size);
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    *stacks = {static_cast<char*>(memory), memory == MAP_FAILED ? 0 : size};
    for (size_t at = 0; at < stacks->size; at += STACK)
        if (mprotect(stacks->memory + at, GUARD, PROT_NONE)) {
            munmap(stacks->memory, stacks->size);
            stacks->size = 0;
        }
    return stacks->size;
}

// But a thousand threads with large frames touch half a gigabyte, which goes back. Whether there was such a frame: the
// first thread's says, by whether a page below those that calls need is there.
void give_back_large_frames() {
    unsigned char there = 0;
    char* below = stacks->memory + STACK - 2 * ROOM;
    if (!mincore(below, 1, &there) && there & 1) madvise(stacks->memory, stacks->size, MADV_DONTNEED);
}

void live() {  // a fiber's life: one thread of each block
    for (;;) {
        kernel(arguments);
        cudasim_copies_wait(0);
        running().state = DONE;
        step_aside();
    }
}

void resume(Fiber& fiber, size_t number) {
    cudasim_thread = &fiber;
    if (_setjmp(scheduler)) {
        cudasim_thread = nullptr;
        return;
    }
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&fiber_context);
    fiber_context.uc_stack.ss_sp = stacks->memory + number * STACK + GUARD;
    fiber_context.uc_stack.ss_size = STACK - GUARD;
    fiber_context.uc_link = nullptr;
    makecontext(&fiber_context, live, 0);
    setcontext(&fiber_context);
}

std::string at(Where where) { return where.file ? where.file + (":" + std::to_string(where.line)) : "no line"; }

// Who waits where, and who has returned: "threads (0,0,0) … (31,0,0), 32 in all, wait in __syncthreads at k.cu:7".
std::string roll_call() {
    std::vector<std::pair<std::string, std::vector<Fiber*>>> groups;
    for (auto& fiber : fibers) {
        const char* what = fiber.state == AT_MEETING ? fiber.what : "__syncthreads";
        std::string place = "returned";
        if (fiber.state != DONE) place = std::string("wait in ") + what + " at " + at(fiber.where);
        auto group = groups.begin();
        while (group != groups.end() && group->first != place) ++group;
        if (group == groups.end()) group = groups.insert(group, {place, {}});
        group->second.push_back(&fiber);
    }
    std::string text;
    for (auto& [place, members] : groups) {
        text += text.empty() ? "" : "; ";
        text += (members.size() == 1 ? "thread " : "threads ") + name_of(*members[0]);
        const std::string count = std::to_string(members.size());
        if (members.size() > 1) text += " to " + name_of(*members.back()) + ", " + count + " in all,";
        text += (place == "returned" ? (members.size() == 1 ? " has " : " have ") : " ") + place;
    }
    return text;
}

void release_barrier() {
    Where where = fibers[0].where;
    int count = 0;
    for (auto& fiber : fibers) {
        if (fiber.state == DONE) return fail("divergent barrier: some threads of the block never come: " + roll_call());
        const bool elsewhere = fiber.where.line != where.line;
        if (elsewhere) return fail("divergent barriers: a block waits in two places: " + roll_call());
        count += fiber.predicate != 0;
    }
    const int size = static_cast<int>(fibers.size());
    for (auto& fiber : fibers) {
        const int answers[] = {0, count, count == size, count > 0};
        *fiber.answer = answers[fiber.kind];
        fiber.state = READY;
    }
    watch_barrier();
}

void run_block(uint3 block, int order) {
    if (__start_cudasim_shared) {  // what was never written is no number
        memset(__start_cudasim_shared, 0xff, __stop_cudasim_shared - __start_cudasim_shared);
    }
    std::fill(dynamic_shared.begin(), dynamic_shared.end(), 0xff);
    std::vector<size_t> turns(fibers.size());
    for (size_t i = 0; i < fibers.size(); i++) {
        turns[i] = order == REVERSE ? fibers.size() - 1 - i : i;
        fibers[i].block = block;
        fibers[i].state = READY;
        fibers[i].copies.clear();
    }
    watch_block(block);
    Signals::next_block();
    for (;;) {
        if (order == SHUFFLED) std::shuffle(turns.begin(), turns.end(), random_bits);
        bool moved = false;
        for (size_t i : turns) {
            if (fibers[i].state != READY) continue;
            resume(fibers[i], i);
            if (Signals::stopped()) {
                const bool meets = fibers[i].state == AT_MEETING;  // the line is that of the call, not one of ours
                fail(Signals::why(fibers[i], at(fibers[i].where), meets));
            }
            if (!error.empty()) return;
            moved = true;
        }
        if (moved) continue;
        size_t done = 0, meeting = 0;
        for (auto& fiber : fibers) done += fiber.state == DONE, meeting += fiber.state == AT_MEETING;
        if (done == fibers.size()) break;
        meeting ? fail("deadlock: nobody can go on: " + roll_call()) : release_barrier();
        if (!error.empty()) return;
    }
    watch_barrier();
}

}  // namespace

std::string name_of(const Thread& thread) {
    const auto& t = thread.thread;
    return "(" + std::to_string(t.x) + "," + std::to_string(t.y) + "," + std::to_string(t.z) + ")";
}

std::string full_name_of(const Thread& thread) {
    const auto& b = thread.block;
    const std::string block = "(" + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z) + ")";
    return "thread " + name_of(thread) + " of block " + block;
}

void fail(const std::string& why) {
    if (error.empty()) error = why;
    if (cudasim_thread) leave_kernel();
}

void leave_kernel() { _longjmp(scheduler, 1); }  // its stack is left as it is

void leave_kernel_at(Where where) {
    running().where = where;
    leave_kernel();
}

bool on_a_stack(const void* address) {
    return stacks && address >= stacks->memory && address < stacks->memory + stacks->size;
}

bool in_a_guard(const void* address) {
    return on_a_stack(address) && (static_cast<const char*>(address) - stacks->memory) % STACK < GUARD;
}

extern "C" {

Thread* cudasim_thread;
dim3 cudasim_block_size, cudasim_grid_size;

void* cudasim_dynamic_shared() { return dynamic_shared.data(); }

void cudasim_barrier(int kind, int predicate, Where where, int* answer) {
    auto& me = running();
    me.state = AT_BARRIER, me.where = where, me.predicate = predicate, me.answer = answer, me.kind = kind;
    step_aside();
}

void cudasim_meet(unsigned mask, const char* what, Where where, void* record, void (*together)(void**, unsigned)) {
    auto& me = running();
    const size_t first = me.warp * 32;
    const auto here = [&](const char* why) {
        char masked[16];
        snprintf(masked, sizeof masked, "0x%08x", mask);
        fail(std::string(what) + " at " + at(where) + " by " + full_name_of(me) + ", mask " + masked + ": " + why);
    };
    if (!(mask >> me.lane & 1)) here("the mask leaves out the lane that calls");
    for (unsigned i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        if (first + i >= fibers.size()) {  // a last warp that is not full
            if (mask == ~0u) { mask &= ~0u >> (31 - (fibers.size() - first - 1)); break; }
            here("the mask names a lane that the block does not have");
        }
        if (fibers[first + i].state == DONE) here("the mask names a lane that has returned");
    }
    me.state = AT_MEETING, me.where = where, me.what = what, me.mask = mask, me.record = record, me.together = together;
    void* lanes[32] = {};
    for (unsigned i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        auto& other = fibers[first + i];
        if (other.state != AT_MEETING || other.mask != mask || other.together != together) {  // not all are here yet
            step_aside();
            return;
        }
        lanes[i] = other.record;
    }
    together(lanes, mask);
    watch_meeting(mask);
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) fibers[first + i].state = READY;
}

void cudasim_trap(const char* why, Where where) {
    fail(std::string(why) + ", at " + at(where) + ", " + full_name_of(running()));
    __builtin_unreachable();
}

void cudasim_copy_later(void* to, const void* from, int size) {
    auto& me = running();
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % size) {
        const size_t pc = reinterpret_cast<size_t>(__builtin_return_address(0));
        char place[32];  // as in watch.cpp
        snprintf(place, sizeof place, "@%zx@", pc - cudasim_image() - 1);
        const std::string bytes = std::to_string(size);
        fail("cp_async<" + bytes + "> from or to an address that is no multiple of " + bytes + ", in " + place + ", " +
             full_name_of(me));
    }
    me.copies.push_back({to, from, size, me.groups, __builtin_return_address(0)});
}

void cudasim_copies_commit() { running().groups++; }

void cudasim_copies_wait(int groups_left) {
    auto& me = running();
    size_t kept = 0;
    for (auto& copy : me.copies) {
        if (copy.group < me.groups - groups_left) {
            if (copy.from) watch_access(copy.from, copy.size, READ, copy.pc);
            watch_access(copy.to, copy.size, WRITE, copy.pc);
            copy.from ? memcpy(copy.to, copy.from, copy.size) : memset(copy.to, 0, copy.size);
        } else me.copies[kept++] = copy;
    }
    me.copies.resize(kept);
}

// Runs the kernel; null if all went well, else what went wrong.
const char* cudasim_launch(void (*call)(void**), void** values, const unsigned* grid, const unsigned* block,
                           size_t shared_bytes, int order, uint64_t seed, double seconds, Stacks* of_the_process) {
    stacks = of_the_process;
    kernel = call, arguments = values, error.clear(), random_bits.seed(seed);
    cudasim_grid_size = dim3(grid[0], grid[1], grid[2]);
    cudasim_block_size = dim3(block[0], block[1], block[2]);
    dynamic_shared.assign(shared_bytes, 0);
    fibers.assign(size_t{block[0]} * block[1] * block[2], Fiber());
    if (!provide_stacks(fibers.size() * STACK)) return "no memory for the threads' stacks";
    for (unsigned i = 0; i < fibers.size(); i++) {
        fibers[i].thread = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
        fibers[i].lane = i % 32, fibers[i].warp = i / 32;
    }
    watch_launch(fibers.data(), fibers.size(), sizeof(Fiber), {__start_cudasim_shared, __stop_cudasim_shared},
                 {dynamic_shared.data(), dynamic_shared.data() + shared_bytes});
    const size_t blocks = size_t{grid[0]} * grid[1] * grid[2];
    std::vector<size_t> turns(blocks);
    for (size_t i = 0; i < blocks; i++) turns[i] = order == REVERSE ? blocks - 1 - i : i;
    if (order == SHUFFLED) std::shuffle(turns.begin(), turns.end(), random_bits);
    Signals signals(seconds);
    for (size_t i : turns) {
        run_block({unsigned(i % grid[0]), unsigned(i / grid[0] % grid[1]), unsigned(i / grid[0] / grid[1])}, order);
        if (!error.empty()) break;
    }
    give_back_large_frames();
    return error.empty() ? nullptr : error.c_str();
}

}  // extern "C"

}  // namespace cudasim
