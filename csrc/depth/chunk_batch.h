// A batch of EXR files as jobs for teams of threads: one job per chunk, all independent of each other. The host
// parses and checks everything except the packed bytes themselves. A team (team_chunk.h) does the rest.
//
//   ChunkBatch batch;
//   batch.add(bytes, "a.exr", std::nullopt, target);        // throws for a broken file, and then adds nothing
//   batch.pack(staging);                                    // writes batch.packed_bytes() bytes to send to the GPU
//   … decode_chunk() of each of batch.jobs() …
//   batch.check(i, results);                                // throws for image i as Decoder::decode() would
#pragma once

#include <span>
#include <string>
#include <vector>

#include "formats.h"
#include "team_chunk.h"

namespace vologan::depth {

// Chunks of up to this many bytes (16 lines of 640 float32 pixels) are decoded in a team's own memory. On a GPU,
// that is the shared memory of a block. Together with the tables it stays below the 48 KiB that every GPU provides
// by default. Larger chunks use the scratch in global memory.
constexpr int64_t kOwnBytes = 40 << 10;

class ChunkBatch {
 public:
  // Adds an EXR that is read natively and has the size of the target. `data` must stay valid until pack(). Only the
  // teams access the memory that the target points to. Throws as Decoder::decode() does, and NotNative for other
  // formats and for grey pictures (Choice::equal).
  void add(std::span<const uint8_t> data, const std::string& name, const std::optional<std::string>& channel,
           const ImageTarget& target, const Limits& limits = {});

  const std::vector<ChunkJob>& jobs() const { return jobs_; }
  const std::vector<ImageTarget>& images() const { return images_; }
  int64_t packed_bytes() const { return packed_bytes_; }
  int64_t scratch_bytes() const { return scratch_bytes_; }
  // The most bytes that a job takes in a team's own memory. This is at most kOwnBytes.
  int64_t team_bytes() const { return team_bytes_; }

  // Copies the packed bytes of all jobs to `staging`, each to the place that its job.packed gives. Fills the gaps
  // between them with zeros. `staging` has room for packed_bytes() bytes.
  void pack(uint8_t* staging) const;

  // Throws Error for the first chunk of image i that had a problem. `results` are the results of all jobs. Returns
  // whether any depth of the image is valid.
  bool check(size_t i, const ChunkResult* results) const;

  // Removes all images and keeps the memory.
  void clear();

 private:
  struct Source {
    std::string name;
    Exr exr;
    size_t first_job;
  };

  std::vector<ChunkJob> jobs_;
  std::vector<std::span<const uint8_t>> stored_;  // the packed bytes of each job
  std::vector<ImageTarget> images_;
  std::vector<Source> sources_;
  int64_t packed_bytes_ = 0, scratch_bytes_ = 0, team_bytes_ = 0;
  Scratch scratch_;
};

// Decodes a batch on the CPU as a GPU would: with the same code, by teams of one thread, one chunk after the other.
class HostChunkDecoder {
 public:
  std::vector<ChunkResult> decode(const ChunkBatch& batch);

 private:
  std::vector<uint32_t> packed_, scratch_;
  InflateTables tables_;
};

}  // namespace vologan::depth
