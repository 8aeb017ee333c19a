// A batch of EXR files as jobs for teams of threads: one job a chunk, all of them independent of each other. The host
// parses and checks everything but the packed bytes themselves; a team (team_chunk.h) does the rest.
//
//   ChunkBatch batch;
//   batch.add(bytes, "a.exr", std::nullopt, target);        // throws, and adds nothing, for a file that is broken
//   batch.pack(staging);                                    // batch.packed_bytes() of them, and off to the GPU
//   … decode_chunk() of each of batch.jobs() …
//   batch.check(i, results);                                // throws for image i as Decoder::decode() would
#pragma once

#include <span>
#include <string>
#include <vector>

#include "formats.h"
#include "team_chunk.h"

namespace vologan::depth {

// Chunks of up to this many bytes (16 lines of 640 float32 pixels) are decoded in a team's own memory, on a GPU the
// shared memory of a block. With the tables that stays below the 48 KiB that every GPU gives without being asked.
// Larger chunks take the scratch in global memory.
constexpr int64_t kOwnBytes = 40 << 10;

class ChunkBatch {
 public:
  // An EXR that is read natively, of the size of the target. `data` must stay until pack(); memory that the target
  // names is touched by the teams only. Throws as Decoder::decode() does, and NotNative for other formats.
  void add(std::span<const uint8_t> data, const std::string& name, const std::optional<std::string>& channel,
           const ImageTarget& target, const Limits& limits = {});

  const std::vector<ChunkJob>& jobs() const { return jobs_; }
  const std::vector<ImageTarget>& images() const { return images_; }
  int64_t packed_bytes() const { return packed_bytes_; }
  int64_t scratch_bytes() const { return scratch_bytes_; }
  // The most that a job takes in a team's own memory, at most kOwnBytes.
  int64_t team_bytes() const { return team_bytes_; }

  // Copies the packed bytes of all jobs to where job.packed says; the gaps between them are zeros.
  void pack(uint8_t* staging) const;

  // Throws Error for the first chunk of image i that had a problem, by the results of all jobs. Returns whether any of
  // its depth is valid.
  bool check(size_t i, const ChunkResult* results) const;

  // Forgets all images; keeps the memory.
  void clear();

 private:
  struct Source {
    std::string name;
    Exr exr;
    size_t first_job;
  };

  std::vector<ChunkJob> jobs_;
  std::vector<std::span<const uint8_t>> stored_;  // of each job
  std::vector<ImageTarget> images_;
  std::vector<Source> sources_;
  int64_t packed_bytes_ = 0, scratch_bytes_ = 0, team_bytes_ = 0;
  Scratch scratch_;
};

// Decodes a batch by teams of one thread, one after the other: what a GPU does, on the CPU.
class HostChunkDecoder {
 public:
  std::vector<ChunkResult> decode(const ChunkBatch& batch);

 private:
  std::vector<uint32_t> packed_, scratch_;
  InflateTables tables_;
};

}  // namespace vologan::depth
