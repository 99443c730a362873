// avops: the engine of engine.h.
#include "engine.h"

#include "engine_work.h"

#include <signal.h>
#include <sys/syscall.h>

#include <chrono>
#include <tuple>
#include <utility>

namespace avops {

namespace {

// As in avops/disk/source.py: what is cached is decided once for each region, by a few samples.
constexpr int64_t kRegion = 1 << 24, kSamples = 8;
constexpr long kCachestat = 451;

}  // namespace

Engine::Engine(EnginePlan plan) : plan_(std::move(plan)), factors_(plan_) {
    for (EngineInput &input : plan_.inputs) own(input.fd), own(input.direct);
    for (EngineTarget &target : plan_.targets) own(target.fd), own(target.direct);
    for (size_t i = 0; i < plan_.inputs.size(); ++i) {
        EngineInput &input = plan_.inputs[i];
        const size_t regions = static_cast<size_t>(input.size / kRegion + 1);
        input.regions = std::make_unique<std::atomic<int8_t>[]>(regions);
        for (size_t r = 0; r < regions; ++r) input.regions[r] = 0;
    }
    size_t done = 0;
    for (size_t i = 0; i < plan_.outputs.size(); ++i) cut(static_cast<int32_t>(i), &done);
}

// The windows of an output: blocks side by side that lack the same candidates.
void Engine::cut(int32_t number, size_t *done) {
    const int64_t size = plan_.outputs[static_cast<size_t>(number)].size;
    // A short last block has another digest: it is left to the caller.
    const int64_t blocks = size / plan_.block + (size % plan_.block >= kDigestFrom ? 1 : 0);
    const size_t before = windows_.size();
    std::vector<int32_t> wanted;
    for (int64_t block = 0; block < blocks; ++block) {
        wanted.clear();
        for (int32_t candidate = 0; candidate < plan_.candidates; ++candidate)
            if (*done < plan_.done.size() && plan_.done[*done] == std::make_tuple(number, block, candidate))
                ++*done;
            else wanted.push_back(candidate);
        if (wanted.empty()) continue;
        if (wanted_.empty() || wanted_.back() != wanted) wanted_.push_back(wanted);
        if (windows_.size() > before) {
            Window &last = windows_.back();
            if (last.block + last.count == block && last.wanted + 1 == wanted_.size() &&
                last.count < plan_.together) {
                ++last.count;
                continue;
            }
        }
        windows_.push_back({number, block, 1, wanted_.size() - 1});
    }
    while (*done < plan_.done.size() && std::get<0>(plan_.done[*done]) <= number) ++*done;
}

void Engine::own(int &fd) {
    if (fd < 0) return;
    owned_.push_back(-1);
    fd = owned_.back() = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) stop_ = true;  // Too many files: all is done in the general way.
}

void Engine::start() {
    // Signals go to the caller's threads, which wait for them.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        for (int i = 0; i < plan_.threads; ++i) {
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                ++running_;
            }
            crew_.emplace_back([this] { work(); });
        }
    } catch (const std::exception &) {
        const std::lock_guard<std::mutex> lock(mutex_);
        --running_;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Engine::work() {
    try {
        EngineWorker worker(*this);
        for (size_t i; !stop_ && (i = next_.fetch_add(1)) < windows_.size();) {
            if (!worker.process(windows_[i])) {
                stop_ = true;
                break;
            }
            bytes_read_ += worker.bytes_read();
            const std::lock_guard<std::mutex> lock(mutex_);
            for (EngineBlock &block : worker.blocks()) done_.push_back(std::move(block));
        }
    } catch (const std::exception &) {
        stop_ = true;  // No memory: what is left is done in the general way.
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--running_ == 0) changed_.notify_all();
}

std::vector<EngineBlock> Engine::poll(double seconds, bool *ended, int64_t *bytes_read) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return running_ == 0; });
    *ended = running_ == 0;
    *bytes_read = bytes_read_;
    std::vector<EngineBlock> found;
    found.swap(done_);
    return found;
}

void Engine::stop() {
    stop_ = true;
    for (std::thread &thread : crew_)
        if (thread.joinable()) thread.join();
    crew_.clear();
    for (const int fd : owned_)
        if (fd >= 0) close(fd);
    owned_.clear();
}

bool Engine::cached(int32_t number, int64_t offset) {
    EngineInput &input = plan_.inputs[static_cast<size_t>(number)];
    if (input.direct < 0 || !ask_) return true;
    const int64_t region = offset / kRegion;
    std::atomic<int8_t> &state = input.regions[static_cast<size_t>(region)];
    int8_t found = state;
    if (found == 0) {
        found = in_region(input, region) ? 1 : -1;
        // The first answer stays, whatever another thread sees a moment later.
        int8_t unasked = 0;
        if (!state.compare_exchange_strong(unasked, found)) found = unasked;
    }
    return found > 0;
}

bool Engine::in_region(EngineInput &input, int64_t region) {
    const int64_t start = region * kRegion;
    const int64_t step = std::max<int64_t>(1, std::min(kRegion, input.size - start) / kSamples);
    for (int64_t i = 0; i < kSamples; ++i) {
        const uint64_t first = static_cast<uint64_t>(start + i * step);
        const uint64_t range[2] = {first, static_cast<uint64_t>(std::min(step, kAlign))};
        uint64_t counts[5] = {};
        if (syscall(kCachestat, input.fd, range, counts, 0) != 0) {
            ask_ = false;  // Nothing tells what is cached, so reads stay ordinary.
            return true;
        }
        const uint64_t pages = (first + range[1] - 1) / kAlign - first / kAlign + 1;
        if (counts[0] < pages) return false;
    }
    return true;
}

}  // namespace avops
