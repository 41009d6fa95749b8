// What runtime.cpp, which runs threads, and watch.cpp, which looks over their shoulders, know of each other.
#pragma once

#include "cuda_on_cpu.h"

namespace cudasim {

enum Order { FORWARD, REVERSE, SHUFFLED };
enum Kind { READ, WRITE, ATOMIC };

struct Span {
    const char *begin, *end;
    size_t bytes() const { return end - begin; }
};

// runtime.cpp
std::string name_of(const Thread&);       // "(3,0,0)"
std::string full_name_of(const Thread&);  // "thread (3,0,0) of block (0,1,0)"
void fail(const std::string& why);        // ends the launch
bool on_a_stack(const void* address);
bool in_a_guard(const void* address);     // between two stacks
[[noreturn]] void leave_kernel();         // of the thread that is running
[[noreturn]] void leave_kernel_at(Where);

// signals.cpp: while one of these lives, what goes wrong in a kernel ends the kernel alone
struct Signals {
    explicit Signals(double seconds);  // that a block may compute for
    ~Signals();
    static void next_block();
    static bool stopped();
    [[noreturn]] static void leave(void* pc);  // what is stopped, by a call whose return address this is
    static std::string why(const Thread& last, const std::string& place, bool meets);
};

// watch.cpp: what happened, in the order in which it did
void watch_launch(const void* threads, size_t count, size_t bytes_each, Span static_shared, Span dynamic_shared);
void watch_block(uint3 block);
void watch_barrier();  // all threads of the block have come, or have returned
void watch_meeting(unsigned mask);
void watch_access(const void* address, int size, Kind, void* pc);
extern "C" size_t cudasim_image();  // where the kernel's library was loaded

}  // namespace cudasim
