// Threads that share the work of a call; native.cpp hands it out.

#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace {

constexpr int kPauses = 500;        // that a thread waits awake before it sleeps: some 30 microseconds

// How often threads of this process had work to share, waited beyond their pauses and slept, for tests.
std::atomic<uint64_t> counted_jobs, counted_sleeps;

// A number that threads wait for: awake for some microseconds, as the wait of an idle machine is over by then, and then
// asleep. On a busy machine what they wait for may have lost its core for milliseconds, and may get that of a sleeper.
class Signal {
 public:
  uint32_t now() const { return number_.load(std::memory_order_acquire); }

  uint32_t other_than(uint32_t old) {
    for (int i = 0; i < kPauses; ++i) {
      if (now() != old) return now();
      _mm_pause();
    }
    counted_sleeps.fetch_add(1, std::memory_order_relaxed);
    number_.wait(old);
    return now();
  }

  // For what nobody waits for yet.
  void prepare(uint32_t number) { number_.store(number, std::memory_order_release); }

  void set(uint32_t number) {
    number_.store(number);
    number_.notify_all();
  }

  void subtract(uint32_t number) {
    if (number_.fetch_sub(number) == number) number_.notify_all();
  }

 private:
  std::atomic<uint32_t> number_{0};
};

// One thread leads: it goes from job to job, and each job is so many items that any thread may work on. The others
// follow, and nobody waits for them: of a thread that has lost its core the rest take its share, all but the item that
// it had begun. Which thread has an item changes nothing in what is computed.
class Team {
 public:
  explicit Team(int threads) : threads_(threads), shares_(threads) {}

  // Calls work(item, member) for all items below `count`, and returns when all is done; the leader's.
  template <class Work>
  void share(int count, const Work& work) {
    work_ = &work;
    call_ = [](const void* of, int item, int member) { (*static_cast<const Work*>(of))(item, member); };
    const uint32_t job = job_.now() + 1;
    for (int member = 0; member < threads_; ++member) {
      const auto first = uint32_t(int64_t(count) * member / threads_), end = uint32_t(int64_t(count) * (member + 1) / threads_);
      shares_[member].next.store(uint64_t(job) << 32 | first, std::memory_order_release);
      shares_[member].end.store(end, std::memory_order_release);  // last: who sees it sees the new job in `next`
    }
    left_.prepare(count);
    job_.set(job);
    counted_jobs.fetch_add(1, std::memory_order_relaxed);
    work_on(job, 0);
    for (uint32_t left = left_.now(); left; left = left_.now()) left_.other_than(left);
  }

  // Works on what the leader shares, until it dismisses the team.
  void follow(int member) {
    for (uint32_t job = 0; (job = job_.other_than(job)) != kOver;) work_on(job, member);
  }

  void dismiss() { job_.set(kOver); }

 private:
  static constexpr uint32_t kOver = 0xffffffff;

  struct alignas(64) Share {
    std::atomic<uint64_t> next{0};  // the job, and the first item of it that nobody has
    std::atomic<uint32_t> end{0};
  };

  // Its own share first, which lies in memory in one piece; then what others have not begun.
  void work_on(uint32_t job, int member) {
    uint32_t done = 0;
    for (int i = 0; i < threads_; ++i) {
      Share& share = shares_[(member + i) % threads_];
      for (uint32_t item; taken(share, job, item); ++done) call_(work_, int(item), member);
    }
    if (done) left_.subtract(done);
  }

  // Only items of this very job: a thread may come too late, when the leader is elsewhere already.
  static bool taken(Share& share, uint32_t job, uint32_t& item) {
    const uint32_t end = share.end.load(std::memory_order_acquire);
    uint64_t next = share.next.load(std::memory_order_acquire);
    do {
      item = uint32_t(next);
      if (next >> 32 != job || item >= end) return false;
    } while (!share.next.compare_exchange_weak(next, next + 1));
    return true;
  }

  const int threads_;
  std::vector<Share> shares_;
  Signal job_, left_;
  const void* work_ = nullptr;
  void (*call_)(const void*, int, int) = nullptr;
};

// Calls lead(team) in a team of so many threads. They are those of OpenMP, which torch's kernels use too, but OpenMP is
// to start and end a team once for all the jobs: its own barriers spin for milliseconds.
template <class Lead>
void with_team(int threads, const Lead& lead) {
  Team team(threads);
#pragma omp parallel num_threads(threads)
  if (const int member = omp_get_thread_num()) {
    team.follow(member);
  } else {
    lead(team);
    team.dismiss();
  }
}

}  // namespace
