// Looks over the shoulders of a kernel's threads: out of bounds? a race? how many transactions?
//
// Compilers can call a function before every access to memory: that is how ThreadSanitizer is told (-fsanitize=thread).
// Here the calls end up in this file instead, which knows what ThreadSanitizer cannot: that threads belong to warps and
// blocks, what a barrier orders, where an array ends, and which 32 accesses a GPU would have made at once.
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <vector>

#include "runtime.h"

namespace cudasim {

namespace {

enum Watched { BOUNDS = 1, RACES = 2, TRAFFIC = 4 };

// ---- Arrays: where they are, and who touched each of their bytes last ----

struct Access {
    uint32_t block, thread;    // numbers; thread counts from 1, so that 0 is nobody
    uint32_t barriers, moment; // how many barriers of the block, how many meetings of the thread came before
    void* pc;
    bool atomic;
};

struct Cell { Access write, reads[2]; };  // of the readers since, the last two that are not the same thread

struct Region {
    const char* begin;
    size_t size;
    int granule;  // bytes that are never shared by two elements
    bool shared;
    int name;
    std::vector<Cell> cells;
    bool holds(const char* at, int bytes) const { return at >= begin && at + bytes <= begin + size; }
};

std::vector<Region> regions;
int watched;
const char *threads, *threads_end, *image, *shared_begin, *shared_end;
size_t thread_bytes;
std::string findings;
int races_found;
constexpr int ENOUGH = 100;

// ---- What happened before what ----

uint32_t block_number, barriers;
std::vector<std::array<uint32_t, 32>> seen;  // for each thread, how many meetings of each lane of its warp it knows of

uint32_t number_of(const Thread& thread) {
    return (reinterpret_cast<const char*>(&thread) - threads) / thread_bytes;
}

bool ordered(const Access& before, uint32_t me, const Thread& thread) {
    if (before.block != block_number) return false;  // nothing orders two blocks
    if (before.barriers < barriers || before.thread == me + 1) return true;
    const uint32_t other = before.thread - 1;
    return other / 32 == thread.warp && seen[me][other % 32] > before.moment;
}

// ---- Traffic ----

struct Lanes { std::array<const char*, 32> at{}; };
struct Site {
    void* pc;
    int size;
    bool write, shared;
    // For each warp, how often each of its lanes has come here since the last barrier, and where to.
    std::map<uint32_t, std::pair<std::array<uint32_t, 32>, std::vector<Lanes>>> warps;
    uint64_t requests = 0, transactions = 0, ideal = 0;
};
std::map<std::pair<void*, bool>, Site> sites;

// Sectors of 32 bytes that a warp's request touches, and the fewest that could hold as many bytes.
void count_global(Site& site, const Lanes& lanes) {
    std::vector<uintptr_t> sectors, words;
    for (const char* at : lanes.at) {
        if (!at) continue;
        words.push_back(reinterpret_cast<uintptr_t>(at));
        for (int i = 0; i < site.size; i += std::min(site.size, 4)) {
            sectors.push_back(reinterpret_cast<uintptr_t>(at + i) / 32);
        }
    }
    const auto distinct = [](std::vector<uintptr_t>& v) {
        std::sort(v.begin(), v.end());
        return static_cast<uint64_t>(std::unique(v.begin(), v.end()) - v.begin());
    };
    site.transactions += distinct(sectors);
    site.ideal += (distinct(words) * site.size + 31) / 32;
}

// Passes that the 32 banks, 4 bytes wide, need: a bank gives one word a pass, to as many lanes as want that one.
void count_shared(Site& site, const Lanes& lanes) {
    const int together = site.size <= 4 ? 32 : site.size == 8 ? 16 : 8;
    for (int first = 0; first < 32; first += together) {
        std::array<std::vector<uintptr_t>, 32> banks;
        size_t passes = 0;
        for (int lane = first; lane < first + together; lane++) {
            if (!lanes.at[lane]) continue;
            const uintptr_t word = reinterpret_cast<uintptr_t>(lanes.at[lane]) / 4;
            for (int i = 0; i < std::max(site.size / 4, 1); i++) {
                auto& bank = banks[(word + i) % 32];
                if (std::find(bank.begin(), bank.end(), word + i) == bank.end()) bank.push_back(word + i);
                passes = std::max(passes, bank.size());
            }
        }
        site.transactions += passes;
        site.ideal += passes > 0;
    }
}

void count_traffic() {
    for (auto& [key, site] : sites) {
        for (auto& [warp, lists] : site.warps) {
            for (const auto& lanes : lists.second) {
                site.requests++;
                site.shared ? count_shared(site, lanes) : count_global(site, lanes);
            }
        }
        site.warps.clear();
    }
}

// ---- Words: "@address@" stands for a source line, "#array:byte:size#" for an element; Python knows their names ----

std::string place(void* pc) {
    char text[32];
    snprintf(text, sizeof text, "@%zx@", static_cast<size_t>(static_cast<char*>(pc) - image) - 1);
    return text;
}

std::string element(const Region& region, const char* at, int size) {
    const std::string byte = std::to_string(at - region.begin);
    return "#" + std::to_string(region.name) + ":" + byte + ":" + std::to_string(size) + "#";
}

const char* word(Kind kind) { return kind == READ ? "reads" : kind == WRITE ? "writes" : "changes (atomically)"; }

[[gnu::noinline]] void out_of_bounds(const char* at, int size, Kind kind, void* pc) {
    const Region* nearest = nullptr;
    size_t least = ~size_t{0};
    for (const auto& region : regions) {
        const size_t away = at < region.begin ? region.begin - at : at - region.begin;
        const size_t distance = at < region.begin ? away : away < region.size ? 0 : away - region.size;
        if (distance < least) least = distance, nearest = &region;
    }
    std::string where = nearest && least < (1 << 20) ? element(*nearest, at, size) : "no array of the kernel's";
    const std::string bytes = std::to_string(size) + " bytes of ";
    fail("out of bounds: " + full_name_of(*cudasim_thread) + " " + word(kind) + " " + bytes +
         where + ", in " + place(pc));
}

void race(const Region& region, const char* at, int size, const Access& before, Kind before_kind, Kind kind, void* pc) {
    if (++races_found > ENOUGH) return;
    Thread other = *reinterpret_cast<const Thread*>(threads + (before.thread - 1) * thread_bytes);
    const unsigned x = cudasim_grid_size.x, y = cudasim_grid_size.y;
    other.block = {before.block % x, before.block / x % y, before.block / x / y};
    findings += "race\t" + place(before.pc) + "\t" + place(pc) + "\t" + element(region, at, size) + "\t";
    findings += full_name_of(other) + " " + word(before.atomic ? ATOMIC : before_kind) + "\t";
    findings += full_name_of(*cudasim_thread) + " " + word(kind) + "\n";
}

void look_for_races(Region& region, const char* at, int size, Kind kind, void* pc) {
    const uint32_t me = number_of(*cudasim_thread);
    const Access now{block_number, me + 1, barriers, seen[me][cudasim_thread->lane], pc, kind == ATOMIC};
    const auto clash = [&](const Access& before) {
        return before.thread && !(before.atomic && kind == ATOMIC) && !ordered(before, me, *cudasim_thread);
    };
    bool told = false;
    for (size_t i = (at - region.begin) / region.granule; i <= (at - region.begin + size - 1) / region.granule; i++) {
        Cell& cell = region.cells[i];
        if (!told && clash(cell.write)) race(region, at, size, cell.write, WRITE, kind, pc), told = true;
        if (kind == READ) {
            if (cell.reads[0].thread != now.thread || cell.reads[0].block != now.block) cell.reads[1] = cell.reads[0];
            cell.reads[0] = now;
            continue;
        }
        for (const auto& read : cell.reads)
            if (!told && clash(read)) race(region, at, size, read, READ, kind, pc), told = true;
        cell.write = now;
    }
}

// Where this library, the kernel's, was loaded.
const char* image_of_this() {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&watch_launch), &info);
    return static_cast<const char*>(info.dli_fbase);
}

}  // namespace

void watch_launch(const void* first, size_t count, size_t bytes_each, Span static_shared, Span dynamic_shared) {
    shared_begin = static_shared.begin, shared_end = static_shared.end;
    threads = static_cast<const char*>(first), thread_bytes = bytes_each, threads_end = threads + count * bytes_each;
    image = image_of_this();
    findings.clear(), sites.clear(), seen.assign(count, {}), races_found = 0;
    if (dynamic_shared.bytes()) regions.push_back({dynamic_shared.begin, dynamic_shared.bytes(), 1, true, -1, {}});
    if (watched & RACES)
        for (auto& region : regions) region.cells.assign(region.size / region.granule + 1, {});
}

void watch_block(uint3 b) {
    if (!watched) return;
    block_number = b.x + cudasim_grid_size.x * (b.y + cudasim_grid_size.y * b.z);
    barriers = 0;
    for (auto& region : regions)
        if (region.shared) std::fill(region.cells.begin(), region.cells.end(), Cell{});
}

void watch_barrier() {
    if (!watched) return;
    barriers++;
    if (watched & TRAFFIC) count_traffic();
}

void watch_meeting(unsigned mask) {
    if (!(watched & RACES)) return;
    const uint32_t first = number_of(*cudasim_thread) / 32 * 32;
    std::array<uint32_t, 32> joint{};
    for (uint32_t i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        seen[first + i][i]++;
        for (int j = 0; j < 32; j++) joint[j] = std::max(joint[j], seen[first + i][j]);
    }
    for (uint32_t i = 0; i < 32; i++)
        if (mask >> i & 1) seen[first + i] = joint;
}

void watch_access(const void* address, int size, Kind kind, void* pc) {
    if (!watched || !cudasim_thread) return;
    if (Signals::stopped()) Signals::leave(pc);
    const char* at = static_cast<const char*>(address);
    if (on_a_stack(at) || (at >= threads && at < threads_end)) return;
    const auto region = std::find_if(regions.begin(), regions.end(), [&](auto& r) { return r.holds(at, size); });
    if (region == regions.end()) {
        Dl_info info;  // constants and tables lie in the image of the kernel itself
        const bool gap = at >= shared_begin && at < shared_end;
        if (!gap && dladdr(at, &info) && info.dli_fbase == image) return;
        if (watched & BOUNDS) out_of_bounds(at, size, kind, pc);
        return;
    }
    if (watched & RACES) look_for_races(*region, at, size, kind, pc);
    if (watched & TRAFFIC) {
        Site& site = sites[{pc, kind != READ}];
        site.pc = pc, site.size = size, site.write = kind != READ, site.shared = region->shared;
        auto& [counts, lists] = site.warps[cudasim_thread->warp];
        const uint32_t occurrence = counts[cudasim_thread->lane]++;
        if (lists.size() <= occurrence) lists.resize(occurrence + 1);
        lists[occurrence].at[cudasim_thread->lane] = at;
    }
}

extern "C" {

void cudasim_atomic(void* at, int size, Where where) {
    if (Signals::stopped()) leave_kernel_at(where);
    watch_access(at, size, ATOMIC, __builtin_return_address(0));
}

size_t cudasim_image() { return reinterpret_cast<size_t>(image_of_this()); }

// What to watch for, and that there are no arrays yet.
void cudasim_watch(int what) {
    watched = what;
    regions.clear();
}

void cudasim_array(const void* begin, size_t size, int granule, int shared, int name) {
    regions.push_back({static_cast<const char*>(begin), size, granule, shared != 0, name, {}});
}

// Lines: "race", and where and who; "traffic", source line, size, write, shared, requests, transactions, the fewest.
const char* cudasim_findings() {
    for (auto& [key, s] : sites) {
        char line[200];
        snprintf(line, sizeof line, "traffic\t%s\t%d\t%d\t%d\t%llu\t%llu\t%llu\n", place(s.pc).c_str(), s.size, s.write,
                 s.shared, (unsigned long long)s.requests, (unsigned long long)s.transactions,
                 (unsigned long long)s.ideal);
        findings += line;
    }
    return findings.c_str();
}

// ---- What the compiler calls ----

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
void __tsan_read_range(void* p, size_t n) { watch_access(p, static_cast<int>(n), READ, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { watch_access(p, static_cast<int>(n), WRITE, __builtin_return_address(0)); }
#define CUDASIM_HOOK(name, size, kind) \
    void __tsan_##name(void* p) { watch_access(p, size, kind, __builtin_return_address(0)); }
#define CUDASIM_HOOKS(size)                        \
    CUDASIM_HOOK(read##size, size, READ)           \
    CUDASIM_HOOK(write##size, size, WRITE)         \
    CUDASIM_HOOK(unaligned_read##size, size, READ) \
    CUDASIM_HOOK(unaligned_write##size, size, WRITE) \
    CUDASIM_HOOK(volatile_read##size, size, READ)  \
    CUDASIM_HOOK(volatile_write##size, size, WRITE) \
    CUDASIM_HOOK(read_write##size, size, WRITE)    \
    CUDASIM_HOOK(unaligned_read_write##size, size, WRITE)
CUDASIM_HOOKS(1)
CUDASIM_HOOKS(2)
CUDASIM_HOOKS(4)
CUDASIM_HOOKS(8)
CUDASIM_HOOKS(16)

}  // extern "C"

}  // namespace cudasim
