// Decodes EXR files by teams of several threads, as a GPU does, and by one thread. All must give the same bits and
// the same problems. The test is built with the thread sanitiser, which reports two threads that access the same
// memory without a sync() between.
#include <barrier>
#include <cstdio>
#include <cstring>
#include <thread>

#include "batch.h"
#include "chunk_batch.h"

using namespace vologan::depth;

namespace {

class ThreadTeam {
 public:
  struct Shared {
    explicit Shared(int size) : size(size), barrier(size) {}
    const int size;
    std::barrier<> barrier;
    bool votes[kTeamThreads] = {};
  };

  ThreadTeam(int rank, Shared& shared) : rank_(rank), shared_(shared) {}
  int rank() const { return rank_; }
  int size() const { return shared_.size; }
  void sync() const { shared_.barrier.arrive_and_wait(); }
  bool any(bool value) const {
    shared_.votes[rank_] = value;
    sync();
    bool any = false;
    for (int k = 0; k < size(); ++k) any |= shared_.votes[k];
    sync();
    return any;
  }

 private:
  const int rank_;
  Shared& shared_;
};

std::vector<ChunkResult> decode(const ChunkBatch& batch, int threads) {
  std::vector<uint32_t> packed(batch.packed_bytes() / 4);
  batch.pack(reinterpret_cast<uint8_t*>(packed.data()));
  std::vector<ChunkResult> results(batch.jobs().size());
  InflateTables tables;
  ThreadTeam::Shared shared(threads);
  std::vector<uint32_t> own;
  const auto work = [&](int rank) {
    const ThreadTeam team(rank, shared);
    for (size_t j = 0; j < results.size(); ++j) {
      const ChunkJob& job = batch.jobs()[j];
      if (rank == 0) own.assign((job.bytes + 3) / 4, 0xcdcdcdcd);
      team.sync();
      const ChunkResult result = decode_chunk(team, job, batch.images()[job.image],
                                              reinterpret_cast<const uint8_t*>(packed.data()), own.data(), tables);
      team.sync();
      if (rank == 0) results[j] = result;
    }
  };
  std::vector<std::jthread> others;
  for (int rank = 1; rank < threads; ++rank) others.emplace_back(work, rank);
  work(0);
  return results;
}

}  // namespace

int main(int count, char** names) {
  int failures = 0, problems = 0;
  for (int i = 1; i < count; ++i) {
    std::vector<uint8_t> file;
    read_file(names[i], {}, file);
    const Info info = probe(file, names[i]);
    std::vector<float> one(info.width * info.height, 7.0f), many = one;
    const auto run = [&](std::vector<float>& image, int threads) {
      ChunkBatch batch;
      ImageTarget target{image.data(), info.height, info.width, info.width, 1};
      target.normalize = true;
      target.rule = {0.5f, 0.5f, -1.0f, 0.0f, nullptr, 0};
      batch.add(file, names[i], std::nullopt, target);
      return threads ? decode(batch, threads) : HostChunkDecoder().decode(batch);
    };
    const std::vector<ChunkResult> expected = run(one, 0);
    for (const ChunkResult& result : expected) problems += result.problem != Problem::None;
    for (const int threads : {2, 5, kTeamThreads}) {
      many.assign(many.size(), 7.0f);
      const std::vector<ChunkResult> found = run(many, threads);
      bool same = std::memcmp(one.data(), many.data(), one.size() * sizeof(float)) == 0;
      for (size_t j = 0; j < found.size(); ++j) {
        same &= found[j].problem == expected[j].problem && found[j].any_valid == expected[j].any_valid;
      }
      if (!same) failures += std::printf("%s differs with %d threads\n", names[i], threads);
    }
  }
  std::printf("%d files, %d chunks with problems\n", count - 1, problems);
  return failures != 0;
}
