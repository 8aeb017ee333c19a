#include "chunk_batch.h"

#include <algorithm>

namespace vologan::depth {

namespace {

constexpr int64_t alignment = 16;

int64_t aligned(int64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

Packing packing_of(const Exr& exr, const ExrChunk& chunk) {
  if (chunk.is_plain()) return Packing::Plain;
  return exr.info.compression == "rle" ? Packing::Runs : Packing::Zlib;
}

ExrSample sample_of(SampleType type) {
  return type == SampleType::Float16   ? ExrSample::Float16
         : type == SampleType::Float32 ? ExrSample::Float32
                                       : ExrSample::Uint32;
}

}  // namespace

void ChunkBatch::add(std::span<const uint8_t> data, const std::string& name, const std::optional<std::string>& channel,
                     const ImageTarget& target, const Limits& limits) {
  const File file{data, name};
  Exr& exr = scratch_.exr;
  const size_t index = open_exr(file, channel, target.height, target.width, limits, exr);
  if (!exr.info.choice.equal.empty()) {
    throw NotNative(
        text(name, ": channels: expected one that says depth, found a picture whose colours are to be compared"));
  }
  locate_chunks(file, exr, scratch_);
  const size_t first_job = jobs_.size();
  try {
    for (int64_t i = 0; i < chunk_count(exr); ++i) {
      const ExrChunk chunk = exr_chunk(file, exr, i, scratch_);
      ChunkJob job{};
      job.bytes = chunk.bytes;
      job.first_row = chunk.first_line - exr.y_first;
      int64_t line = 0;
      for (int64_t y = chunk.first_line; y <= chunk.last_line; ++y) {
        job.line_offsets[job.rows++] = line + line_bytes(exr, y, index);
        line += line_bytes(exr, y, exr.channels.size());
      }
      job.packed_bytes = static_cast<uint32_t>(chunk.stored.size());
      job.image = static_cast<int32_t>(images_.size());
      job.packing = packing_of(exr, chunk);
      job.sample = sample_of(exr.channels[index].type);
      jobs_.push_back(job);
      stored_.push_back(chunk.stored);
    }
  } catch (...) {
    jobs_.resize(first_job);
    stored_.resize(first_job);
    throw;
  }
  for (size_t j = first_job; j < jobs_.size(); ++j) {
    ChunkJob& job = jobs_[j];
    job.packed = packed_bytes_;
    packed_bytes_ += aligned(job.packed_bytes);
    job.scratch = -1;
    if (job.packing == Packing::Plain) continue;
    if (job.bytes <= kOwnBytes) {
      team_bytes_ = std::max(team_bytes_, aligned(job.bytes));
    } else {
      job.scratch = scratch_bytes_;
      scratch_bytes_ += aligned(job.bytes);
    }
  }
  images_.push_back(target);
  sources_.push_back({name, exr, first_job});
  Exr& kept = sources_.back().exr;
  kept.attributes.clear(), kept.channels.clear();  // their names point into the file, which may be released
}

void ChunkBatch::pack(uint8_t* staging) const {
  for (size_t j = 0; j < jobs_.size(); ++j) {
    uint8_t* const to = staging + jobs_[j].packed;
    std::memcpy(to, stored_[j].data(), stored_[j].size());
    std::fill(to + stored_[j].size(), to + aligned(jobs_[j].packed_bytes), uint8_t{0});
  }
}

bool ChunkBatch::check(size_t i, const ChunkResult* results) const {
  const Source& source = sources_[i];
  bool any_valid = false;
  for (int64_t k = 0; k < chunk_count(source.exr); ++k) {
    const size_t j = source.first_job + static_cast<size_t>(k);
    if (results[j].problem != Problem::None) {
      fail_chunk(File{{}, source.name}, source.exr, k, jobs_[j].bytes, found_instead(results[j].problem));
    }
    any_valid |= results[j].any_valid;
  }
  return any_valid;
}

void ChunkBatch::clear() {
  jobs_.clear();
  stored_.clear();
  images_.clear();
  sources_.clear();
  packed_bytes_ = scratch_bytes_ = team_bytes_ = 0;
}

std::vector<ChunkResult> HostChunkDecoder::decode(const ChunkBatch& batch) {
  constexpr int64_t word = sizeof(uint32_t);
  packed_.resize(batch.packed_bytes() / word);
  batch.pack(reinterpret_cast<uint8_t*>(packed_.data()));
  std::vector<ChunkResult> results;
  results.reserve(batch.jobs().size());
  for (const ChunkJob& job : batch.jobs()) {
    if (job.packing != Packing::Plain) scratch_.resize(aligned(job.bytes) / word);
    results.push_back(decode_chunk(HostTeam{}, job, batch.images()[job.image],
                                   reinterpret_cast<const uint8_t*>(packed_.data()), scratch_.data(), tables_));
  }
  return results;
}

}  // namespace vologan::depth
