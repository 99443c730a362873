// avops: a whole merge on native threads: read → combine → digest → write, window by window.
//
// A window is read once for all candidates (for kGroup of them at a time, if there are many).
// What a window needs is read from the page cache piece by piece, or past it where it is not there;
// nothing waits for the interpreter. The engine reports blocks that are written, and never what is
// wrong: after the first read or write that fails it stops, and the caller does the blocks that are
// not reported in the general way, which succeeds, or says what is wrong with which file.
#pragma once

#include "engine_factors.h"
#include "engine_plan.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace avops {

// Its descriptors are its own: whoever closes the caller's cannot put other files in their place.
class Engine {
  public:
    explicit Engine(EnginePlan plan);
    ~Engine() { stop(); }
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    // May throw std::exception when no thread can be started.
    void start();
    // Blocks written since the last call, waiting for them up to `seconds`. Sets whether all threads have
    // ended, and the bytes read so far.
    std::vector<EngineBlock> poll(double seconds, bool *ended, int64_t *bytes_read);
    // Ends the threads; after this nothing reads or writes, and no file is held open.
    void stop();

  private:
    friend class EngineWorker;
    // wanted: which of wanted_ has its candidates.
    struct Window {
        int32_t output;
        int64_t block, count;
        size_t wanted;
    };

    void cut(int32_t output, size_t *done);
    void own(int &fd);
    void work();
    bool cached(int32_t input, int64_t offset);
    bool in_region(EngineInput &input, int64_t region);

    EnginePlan plan_;
    FactorPool factors_;
    std::vector<Window> windows_;
    std::vector<std::vector<int32_t>> wanted_;
    std::atomic<size_t> next_{0};
    std::atomic<bool> stop_{false};
    std::atomic<bool> ask_{true};
    std::atomic<int64_t> bytes_read_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<EngineBlock> done_;
    int running_ = 0;
    std::vector<std::thread> crew_;
    std::vector<int> owned_;
};

}  // namespace avops
