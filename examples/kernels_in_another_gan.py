"""Train a small pix2pix with the kernels: fused norms, adversarial and pixel losses, NAdam.

    python examples/kernels_in_another_gan.py

The made-up task is to find a bright disc in a noisy image. It runs on the CPU in seconds. On a GPU with Triton the same
lines run as kernels. See docs/kernels.md and docs/kernels-losses.md.
"""

import torch
from torch import nn
from vologan_kernels import InstanceNormAct2d, NAdam, adversarial_losses, weighted_l1

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw_pairs(count: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images (count, 3, size, size) with a disc each, and its mask (count, 1, size, size)."""
    place = torch.arange(size, device=DEVICE) - torch.rand(2, count, 1, device=DEVICE) * size
    disc = (place[0, :, :, None] ** 2 + place[1, :, None, :] ** 2 < (size / 4) ** 2).float()[:, None]
    return 0.5 * torch.rand(count, 3, size, size, device=DEVICE) + 0.4 * disc, disc


def main(steps: int) -> None:
    torch.manual_seed(0)
    generator = nn.Sequential(
        nn.ReflectionPad2d(1),
        nn.Conv2d(3, 16, 3, bias=False),
        InstanceNormAct2d(16, activation="relu", reflection_pad=1),  # the padding of the next convolution
        nn.Conv2d(16, 16, 3, bias=False),
        InstanceNormAct2d(16, activation="relu", reflection_pad=1),
        nn.Conv2d(16, 1, 3),
        nn.Sigmoid(),
    ).to(DEVICE)
    discriminator = nn.Sequential(  # judges an image and a mask, side by side in the channels
        nn.Conv2d(4, 16, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 4, 2, 1, bias=False),
        InstanceNormAct2d(32, activation="leaky_relu", negative_slope=0.2),
        nn.Conv2d(32, 1, 4, 1, 1),
    ).to(DEVICE)
    optimizers = [NAdam(network.parameters(), lr=5e-3, betas=(0.5, 0.999)) for network in (generator, discriminator)]
    for step in range(steps):
        images, masks = draw_pairs(4)
        fakes = generator(images)
        real_logits, fake_logits, logits = (
            discriminator(torch.cat([images, shown], 1)) for shown in (masks, fakes.detach(), fakes)
        )
        judgement, _ = adversarial_losses([real_logits, fake_logits], ["real", "fake"], "lsgan")
        adversarial, _ = adversarial_losses([logits], ["generator"], "lsgan")
        distance = weighted_l1(fakes, masks)
        for optimizer, loss in zip(optimizers, (adversarial + 10 * distance, judgement), strict=True):
            optimizer.zero_grad()  # this also removes the gradients that the generator's loss left in the discriminator
            loss.backward()
            optimizer.step()
        print(f"step {step}: L1 {distance.item():.4f}, discriminator {judgement.item():.4f}")


if __name__ == "__main__":
    main(steps=30)
