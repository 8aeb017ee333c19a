// Loads pairs of a colour and a depth file. The arguments are the side of the images and the names of the files.
// Writes for each pair "1" and the bytes of the image, or "0" if the image was not loaded.
#include "image_loader.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

using namespace vologan::data;

int main(int count, char** arguments) {
  const int64_t size = std::atoi(arguments[1]);
  ImageLoader loader({size, size}, "", {0.5f, 0.5f, -1.0f, std::nanf(""), nullptr, 0}, {}, 7, {}, int64_t{1} << 26,
                     2.0);
  for (int i = 2; i + 1 < count; i += 2) {
    // The memory has exactly this size, so that a sanitiser reports an access beyond it. It is aligned to a pixel.
    std::vector<float> image(static_cast<size_t>(size * size * 4));
    const bool loaded =
        loader.load({arguments[i], 0, -1, {}}, {arguments[i + 1], 0, -1, {}}, {i % 4 == 0, 1, 2}, image.data());
    std::fputc(loaded ? '1' : '0', stdout);
    if (loaded) std::fwrite(image.data(), sizeof(float), image.size(), stdout);
  }
}
