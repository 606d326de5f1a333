"""TensorFlow's random stream and what the samplers draw from it.

The stream is Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405). It is kept as pairs of 32-bit words, the
earlier word in the low half of a uint64, so that a 64-bit draw is one pair. A kernel `*_draws` turns words from `start`
on into draws until either runs out, and returns (draws made, words used by them).
"""

from __future__ import annotations

import math

import numpy as np

from bigvocab.kernels.jit import inline, jit

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_1 = np.uint64(1)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MANTISSA_52 = np.uint64(2**52 - 1)
_MANTISSA_23 = np.uint64(2**23 - 1)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@jit
def philox_pairs(pairs, key, high, block):
    """Fill `pairs` with the stream from block number `block` on, 2 pairs a block; `high`: upper half of the counter."""
    for i in range(pairs.size // 2):
        low = block + np.uint64(i)
        c0, c1, c2, c3 = low & _LOW, low >> _32, high & _LOW, high >> _32
        k0, k1 = key & _LOW, key >> _32
        for _ in range(10):
            product_0, product_1 = _MULTIPLIER_0 * c0, _MULTIPLIER_1 * c2
            c0, c1 = (product_1 >> _32) ^ c1 ^ k0, product_1 & _LOW
            c2, c3 = (product_0 >> _32) ^ c3 ^ k1, product_0 & _LOW
            k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
        pairs[2 * i] = c0 | (c1 << _32)
        pairs[2 * i + 1] = c2 | (c3 << _32)


@inline
def _word(pairs, index):
    return (pairs[index >> 1] >> np.uint64((index & 1) << 5)) & _LOW


@inline
def _bounded_word(pairs, index, num_words, bound):
    """A 32-bit integer below `bound` and the index after it; -1 when the words run out."""
    if bound & (bound - _1) == 0:
        if index >= num_words:
            return -1, index
        return np.int64(_word(pairs, index) & (bound - _1)), index + 1
    skewed = _LOW % bound + _1  # words below it would favour low results
    while index < num_words:
        word = _word(pairs, index)
        index += 1
        if word >= skewed:
            return np.int64(word % bound), index
    return -1, index


@jit
def uniform_draws(pairs, start, range_max, draws):
    """Integers below `range_max` (uint64), each from one pair or, where that one would skew, the next."""
    made, pair = 0, start >> 1
    is_power = range_max & (range_max - _1) == 0
    skewed = np.uint64(0) if is_power else np.uint64(2**64 - 1) % range_max + _1
    while made < draws.size and pair < pairs.size:
        bits = pairs[pair]
        pair += 1
        if bits >= skewed:
            draws[made] = np.int64(bits & (range_max - _1) if is_power else bits % range_max)
            made += 1
    return made, 2 * pair - start


@jit
def log_uniform_draws(pairs, start, log_range, range_max, draws):
    """floor(exp(u log_range)) - 1, with the C library's exp: TensorFlow calls it too, so the last bit is the same.

    A vectorised exp that asks the library only near an integer took 1.6 ns a draw in place of 3.6.
    """
    first = start >> 1
    made = min(draws.size, pairs.size - first)
    stream = pairs[first : first + made]
    for i in range(stream.size):
        bits = ((stream[i] << _32) | (stream[i] >> _32)) & _MANTISSA_52
        draw = np.int64(math.exp(np.float64(np.int64(bits)) * 2.0**-52 * log_range)) - 1
        draws[i] = draw if draw < range_max else draw % range_max
    return made, 2 * made


@jit
def alias_draws(pairs, start, table, draws):
    """Two words a draw or more: a 23-bit fraction and a bucket; below the bucket's threshold itself, else its alias."""
    num_words, index, used, made = 2 * pairs.size, start, start, 0
    bound = np.uint64(table.shape[0])
    while made < draws.size and index + 1 < num_words:
        fraction = _word(pairs, index) & _MANTISSA_23
        bucket, index = _bounded_word(pairs, index + 1, num_words, bound)
        if bucket < 0:
            break
        draws[made] = bucket if fraction < np.uint64(table[bucket, 0]) else np.int64(table[bucket, 1])
        made += 1
        used = index
    return made, used - start


@jit
def power_float32(weights, exponent, powers):
    """The C library's powf, as TensorFlow calls it; NumPy's vectorised float32 power differs in the last bit."""
    for i in range(weights.size):
        powers[i] = math.pow(weights[i], exponent)


@jit
def build_count_tree(weights):
    """Tree of int32 sums: entry i, from 1, is that of (i - lowbit(i), i] (Fenwick 1994, 10.1002/spe.4380240306)."""
    tree = weights.copy()
    for i in range(1, tree.size + 1):
        parent = i + (i & -i)
        if parent <= tree.size:
            tree[parent - 1] += tree[i - 1]
    return tree


@jit
def add_to_tree(tree, ids):
    """Add 1 to the weight of each of `ids`."""
    for id_ in ids:
        i = id_ + 1
        while i <= tree.size:
            tree[i - 1] += 1
            i += i & -i


@jit
def tree_weights(tree, ids, weights):
    """The single weights of `ids`."""
    for k in range(ids.size):
        i = ids[k] + 1
        weight = np.int64(tree[i - 1])
        stop, i = i - (i & -i), i - 1
        while i != stop:
            weight -= np.int64(tree[i - 1])
            i -= i & -i
        weights[k] = weight


@jit
def tree_draws(pairs, start, tree, total, draws):
    """One word a draw or more: an integer below `total` (uint64), then the id in whose share of the sums it falls."""
    num_words, index, used, made = 2 * pairs.size, start, start, 0
    top = 1
    while 2 * top <= tree.size:
        top *= 2
    while made < draws.size:
        rest, index = _bounded_word(pairs, index, num_words, total)
        if rest < 0:
            break
        id_, step = 0, top
        while step > 0:
            if id_ + step <= tree.size and np.int64(tree[id_ + step - 1]) <= rest:
                id_ += step
                rest -= np.int64(tree[id_ - 1])
            step >>= 1
        draws[made] = id_
        made += 1
        used = index
    return made, used - start


@jit
def keep_new_bits(draws, seen, candidates, picked):
    """Append the draws not yet marked in the bitmap `seen`; returns (candidates so far, draws looked at)."""
    i = 0
    while i < draws.size and picked < candidates.size:
        draw = draws[i]
        slot, bit = draw >> 6, _1 << np.uint64(draw & 63)
        old = seen[slot]
        candidates[picked] = draw  # overwritten by the next one if it is not new: no branch to mispredict
        picked += np.int64(old & bit == 0)
        seen[slot] = old | bit
        i += 1
    return picked, i


@inline
def _find_slot(slots, shift, id_):
    """The slot of a table of 2^(64 - shift) ids that holds `id_`, or the free one (-1) where it belongs."""
    slot = np.int64((np.uint64(id_) * _GOLDEN) >> shift)
    while slots[slot] != id_ and slots[slot] != -1:
        slot = (slot + 1) & (slots.size - 1)
    return slot


@inline
def _hash_shift(num_slots):
    shift = np.uint64(64)
    while num_slots > 1:
        num_slots >>= 1
        shift -= _1
    return shift


@jit
def keep_new_hashed(draws, slots, candidates, picked):
    """As `keep_new_bits`, with a hash table of O(S): 2^k slots, -1 at first."""
    i, shift = 0, _hash_shift(slots.size)
    while i < draws.size and picked < candidates.size:
        slot = _find_slot(slots, shift, draws[i])
        if slots[slot] == -1:
            slots[slot] = draws[i]
            candidates[picked] = draws[i]
            picked += 1
        i += 1
    return picked, i


@inline
def _walk_hits(offsets, ids, slots, heads, following, hits):
    """Write row * S + position of each hit as far as `hits` goes; returns how many there are."""
    last_rows = np.full(slots.size, -1, np.int64)
    shift, num_candidates, found = _hash_shift(slots.size), following.size, 0
    for row in range(offsets.size - 1):
        for k in range(offsets[row], offsets[row + 1]):
            slot = _find_slot(slots, shift, ids[k])
            position = heads[slot] if last_rows[slot] != row else -1  # a repeated true label is one hit
            last_rows[slot] = row
            while position >= 0:
                if found < hits.size:
                    hits[found] = row * num_candidates + position
                found += 1
                position = following[position]
    return found


@jit
def accidental_hits(offsets, ids, candidates):
    """Number row * S + position of each candidate that is a true label of the row; those of a row in no order."""
    num_slots = 2
    while num_slots < 2 * candidates.size:
        num_slots *= 2
    slots, heads = np.full(num_slots, -1, np.int64), np.full(num_slots, -1, np.int64)
    following = np.empty(candidates.size, np.int64)
    shift = _hash_shift(num_slots)
    for position in range(candidates.size - 1, -1, -1):  # chains of equal candidates
        slot = _find_slot(slots, shift, candidates[position])
        slots[slot] = candidates[position]
        following[position] = heads[slot]
        heads[slot] = position
    hits = np.empty(_walk_hits(offsets, ids, slots, heads, following, following[:0]), np.int64)
    _walk_hits(offsets, ids, slots, heads, following, hits)
    return hits
