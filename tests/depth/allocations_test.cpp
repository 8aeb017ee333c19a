// Decodes the files named as arguments again and again, by a Decoder and from their paths by decode_batch. Fails if
// operator new is called for an image like one that has been decoded before.
#include "batch.h"

#include <cstdio>
#include <cstdlib>
#include <new>

using namespace vologan::depth;

static long allocations = 0;

void* operator new(size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

template <class Work>
long allocations_of(const Work& work) {
  const long before = allocations;
  work();
  return allocations - before;
}

int main(int count, char** paths) {
  int failures = allocations_of([] { Decoder(); }) == 0;  // a check that allocations are counted
  for (int i = 1; i < count; ++i) {
    const std::string path = paths[i];
    std::vector<uint8_t> file;
    read_file(path, {}, file);
    const Info info = probe(file, path);
    std::vector<float> image(info.width * info.height);
    const Plane plane = Plane::packed(image.data(), info.height, info.width);
    const Plane transposed{image.data(), info.height, info.width, 1, info.height};

    Decoder decoder;
    for (const Plane& target : {plane, transposed}) {
      const auto decode = [&] { decoder.decode(file, path, std::nullopt, target); };
      decode();
      if (const long again = allocations_of(decode)) {
        ++failures;
        std::printf("%s: %ld allocations for the second image\n", paths[i], again);
      }
    }

    // The number of allocations in a call does not grow with the number of images.
    const auto batch = [&](size_t images) {
      const std::vector<Source> sources(images, Source{path, std::nullopt});
      const std::vector<Plane> planes(images, plane);
      return allocations_of([&] {
        for (const std::exception_ptr& error : decode_batch(sources, planes, std::nullopt, 1, {})) {
          failures += error != nullptr;
        }
      });
    };
    batch(1);
    const long one = batch(1), many = batch(20);
    if (one != many) {
      ++failures;
      std::printf("%s: decode_batch allocates %ld times for 1 image, %ld times for 20\n", paths[i], one, many);
    }
  }
  return failures != 0;
}
