#include "threads.h"

#include <system_error>
#include <thread>
#include <vector>

namespace vologan {

namespace {

struct OpenMp {
  void (*parallel)(void (*f)(void*), void* data, unsigned threads, unsigned flags) = nullptr;  // GOMP_parallel
  int (*thread_num)() = nullptr;
  int (*num_threads)() = nullptr;
};

OpenMp openmp;

struct Work {
  int64_t count;
  void (*f)(void*, int64_t, int64_t, int64_t);
  void* context;

  // The range of one thread. The same thread gets the same range in each call, so it finds the data in its own cache.
  void run(int64_t thread, int64_t threads) const {
    const int64_t begin = count * thread / threads, end = count * (thread + 1) / threads;
    if (begin < end) f(context, thread, begin, end);
  }
};

void run_in_team(void* work) { static_cast<Work*>(work)->run(openmp.thread_num(), openmp.num_threads()); }

}  // namespace

void use_openmp(void* parallel, void* thread_num, void* num_threads) {
  openmp.parallel = reinterpret_cast<decltype(openmp.parallel)>(parallel);
  openmp.thread_num = reinterpret_cast<int (*)()>(thread_num);
  openmp.num_threads = reinterpret_cast<int (*)()>(num_threads);
}

void share(int64_t threads, int64_t count, void (*f)(void*, int64_t, int64_t, int64_t), void* context) {
  if (threads > count) threads = count;
  Work work{count, f, context};
  if (threads <= 1) {
    work.run(0, 1);
  } else if (openmp.parallel != nullptr) {
    openmp.parallel(run_in_team, &work, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    int64_t started = 1;
    try {
      others.reserve(threads - 1);
      for (; started < threads; ++started) others.emplace_back(&Work::run, &work, started, threads);
    } catch (const std::exception&) {  // no memory, or no more threads: this thread does what is left
    }
    work.run(0, threads);
    for (int64_t thread = started; thread < threads; ++thread) work.run(thread, threads);
    for (std::thread& other : others) other.join();
  }
}

}  // namespace vologan
