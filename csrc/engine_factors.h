// avops: the factors of low-rank terms, read and laid out once per tensor and kept while it is at work.
#pragma once

#include "engine_plan.h"
#include "lowrank.h"

#include <list>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace avops {

// The factors of one term, as the kernel wants them.
struct Factors {
    LowRank of;
    std::vector<float> left, panels;

    int64_t nbytes() const { return static_cast<int64_t>((left.size() + panels.size()) * sizeof(float)); }
};

// Factors by number; the least recently used go first. Windows go through tensors in order, so those of
// the two largest tensors are enough for all threads: the one that ends and the one that begins.
class FactorPool {
  public:
    explicit FactorPool(const EnginePlan &plan);

    // The factors with that number, read by the first who asks, while the others wait. Null: a read failed.
    // May throw std::bad_alloc.
    std::shared_ptr<const Factors> get(int32_t number);

  private:
    const EnginePlan &plan_;
    int64_t limit_;
    std::mutex mutex_;
    // The last ones used come last. places_: of each number in kept_; its end for those that are not there.
    typedef std::list<std::pair<int32_t, std::shared_ptr<const Factors>>> Kept;
    Kept kept_;
    std::vector<Kept::iterator> places_;
    int64_t nbytes_ = 0;
};

}  // namespace avops
