"""Random numbers that depend only on what they are for: Philox4x32-10 (Salmon et al. 2011) on arrays of counters.

A draw of a site is word c % 4 of the block philox(key(seed, step, site), place, c / 4), place = window * S + position.
"""

import numpy as np
import torch

MASK32, MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
NOISE, JITTER, EXPERTS, HIDDEN = 1 << 32, 2 << 32, 3 << 32, 4 << 32      # sites of layer 0; + the layer


def mix_key(seed, purpose):
    """The finaliser of SplitMix64."""
    z = (seed + 0x9E3779B97F4A7C15 * (purpose + 1)) & MASK64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK64
    return z ^ z >> 31


def blocks(key, low, high):
    """[.., 4] words of the counters (low, high), two arrays of one shape that fit 63 bits."""
    low, high = np.broadcast_arrays(np.asarray(low, np.uint64), np.asarray(high, np.uint64))
    low32 = np.uint64(MASK32)
    x, y, z, w = low & low32, low >> np.uint64(32), high & low32, high >> np.uint64(32)
    k0, k1 = key & MASK32, key >> 32
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * x, np.uint64(0xCD9E8D57) * z
        x, y, z, w = (b >> np.uint64(32)) ^ y ^ np.uint64(k0), b & low32, (a >> np.uint64(32)) ^ w ^ np.uint64(k1), a & low32
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return np.stack([x, y, z, w], -1)


def words(key, place, columns):
    """place [T] -> [T, columns] words."""
    block = np.arange((columns + 3) // 4)
    return blocks(key, np.asarray(place)[:, None], block[None, :]).reshape(len(place), -1)[:, :columns]


def uniform(drawn, bits):
    """Words to the middles of 2^bits equal parts of (0, 1), fp64."""
    return torch.from_numpy(((drawn >> np.uint64(32 - bits)).astype(np.float64) + 0.5) / 2.0**bits)


class Draws:
    """The draws of one micro-batch. windows: the global number of each of its sequences."""

    def __init__(self, seed, step, windows, seq_len):
        self.key = lambda site: mix_key(mix_key(seed, step), site)
        self.place = (np.asarray(windows)[:, None] * seq_len + np.arange(seq_len)).reshape(-1)

    def open_uniform(self, site, columns):
        """[T, columns] of 23 bits."""
        return uniform(words(self.key(site), self.place, columns), 23)

    def shared_uniform(self, site, columns):
        """[columns], the same for all tokens of a step."""
        return uniform(words(self.key(site), [0], columns), 23)[0]

    def gumbel(self, site, columns):
        return -(-self.open_uniform(site, columns).log()).log()

    def gaussian(self, site, columns):
        """Box and Muller on pairs of columns."""
        u = self.open_uniform(site, (columns + 1) // 2 * 2).unflatten(-1, (-1, 2))
        radius, angle = (-2 * u[..., 0].log()).sqrt(), 2 * np.pi * u[..., 1]
        return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(-2)[:, :columns]

    def keep(self, site, columns, p):
        """[T, columns] 1 / (1 - p) where kept, else 0."""
        return self._mask(words(self.key(site), self.place, columns), p)

    def keep_hidden(self, site, columns, p, top_k):
        """[T, K, columns]: of the hidden units of assignments."""
        place = (self.place[:, None] * top_k + np.arange(top_k)).reshape(-1)
        return self._mask(words(self.key(site), place, columns), p).view(-1, top_k, columns)

    @staticmethod
    def _mask(drawn, p):
        return (uniform(drawn, 24) >= p) / (1 - p)
