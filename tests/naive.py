"""The oracle: every loss and value in its slowest and plainest form, float64, row by row, with nothing of the package.

Labels that are a set of ids per row are a CSR pair `(offsets, ids)`, an (N, T) array or a list of lists. Rows never
share arithmetic: a NaN stays in its row. `call(name, ...)` takes the public functions' own arguments, so a test can
compare both with one dict.
"""

import math

import numpy as np


def total(values):
    """The exact sum, rounded once; infinities and NaN as in ordinary addition."""
    values = list(values)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # fsum refuses inf - inf and sums beyond the largest float
        return sum(values)


def times(a, b):
    """a * b where 0 * inf is 0: a class or an example that does not count adds nothing."""
    return 0.0 if (a == 0 or b == 0) and not (math.isnan(a) or math.isnan(b)) else a * b


def floats(array):
    """A (nested) list of Python floats of any input type."""
    return np.asarray(array, dtype=np.float64).tolist()


def id_rows(labels):
    """The ids of each row, as lists of ints."""
    if isinstance(labels, tuple):
        offsets, ids = (np.asarray(part).tolist() for part in labels)
        return [ids[start:stop] for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]
    return [[int(label) for label in row] for row in labels]


def smooth(label, label_smoothing, num_classes):
    """The target probability after smoothing: (1 - e) z + e / V."""
    return (1 - label_smoothing) * label + label_smoothing / num_classes


# Rows


def _head(row):
    """The maximum m of a row and r with log sum exp = m + log1p(r); NaN for a row that has no sum."""
    peak = max(row)
    if any(math.isnan(x) for x in row):
        return math.nan, math.nan
    if math.isinf(peak):
        return peak, 0.0
    at = row.index(peak)
    return peak, total(math.exp(x - peak) for i, x in enumerate(row) if i != at)


def log_sum_exp(row):
    """log sum_j exp(x_j)."""
    peak, rest = _head(row)
    return peak + math.log1p(rest)


def negative_log_likelihoods(row):
    """lse - x_j for every class j of one row, accurate even where it is 1e-300."""
    peak, rest = _head(row)
    return [(peak - x) + math.log1p(rest) for x in row]


def softplus(x):
    """log(1 + exp(x)) = -log sigmoid(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid_term(x, label, pos_weight=1.0):
    """The loss of one logit: q z softplus(-x) + (1 - z) softplus(x)."""
    return times(pos_weight * label, softplus(-x)) + times(1.0 - label, softplus(x))


# Losses, one value per row (softmax family) or per element (sigmoid family)


def sparse_softmax_cross_entropy(logits, labels, label_smoothing=0.0, class_weights=None):
    """(1 - e) w_y nll_y + (e / V) sum_c w_c nll_c, nll_c = lse - x_c, as PyTorch."""
    losses = []
    for row, label in zip(floats(logits), np.asarray(labels).tolist(), strict=True):
        nll = negative_log_likelihoods(row)
        weight = [1.0] * len(row) if class_weights is None else floats(class_weights)
        loss = times(1 - label_smoothing, times(weight[label], nll[label]))
        if label_smoothing:
            loss += label_smoothing / len(row) * total(times(w, n) for w, n in zip(weight, nll, strict=True))
        losses.append(loss)
    return np.array(losses, dtype=np.float64)


def softmax_cross_entropy(logits, labels, label_smoothing=0.0):
    """sum_j z_j (lse - x_j); a class with z = 0 adds nothing, whatever its logit."""
    losses = []
    for row, label in zip(floats(logits), floats(labels), strict=True):
        nll = negative_log_likelihoods(row)
        z = [smooth(value, label_smoothing, len(row)) for value in label]
        lost = all(math.isnan(n) for n in nll)
        losses.append(math.nan if lost else total(a * n for a, n in zip(z, nll, strict=True) if a != 0))
    return np.array(losses, dtype=np.float64)


def sigmoid_cross_entropy(logits, labels, label_smoothing=0.0):
    """max(x, 0) - x z + log1p(exp(-|x|)) for each element, with its limits at +-inf; z smoothed towards 1/2."""
    return weighted_sigmoid_cross_entropy(
        logits, smooth(np.asarray(labels, dtype=np.float64), label_smoothing, num_classes=2), pos_weight=1.0
    )


def weighted_sigmoid_cross_entropy(logits, labels, pos_weight):
    """q z softplus(-x) + (1 - z) softplus(x) for each element; q a scalar or one per class."""
    logits = np.asarray(logits, dtype=np.float64)
    labels, pos_weight = (np.broadcast_to(np.asarray(a, dtype=np.float64), logits.shape) for a in (labels, pos_weight))
    elements = zip(logits.ravel().tolist(), labels.ravel().tolist(), pos_weight.ravel().tolist(), strict=True)
    return np.array([sigmoid_term(*element) for element in elements], dtype=np.float64).reshape(logits.shape)


def sparse_sigmoid_cross_entropy(logits, labels, pos_weight=None):
    """Sigmoid cross-entropy summed over the classes, the listed ids being positive and all others negative."""
    losses = []
    for row, positive in zip(floats(logits), id_rows(labels), strict=True):
        positive = set(positive)
        q = np.broadcast_to(np.asarray(1.0 if pos_weight is None else pos_weight, dtype=np.float64), len(row)).tolist()
        losses.append(total(sigmoid_term(x, float(j in positive), q[j]) for j, x in enumerate(row)))
    return np.array(losses, dtype=np.float64)


def log_loss(predictions, labels, epsilon=1e-7):
    """-z log(p + eps) - (1 - z) log(1 - p + eps) for each element: eps is added, not a clamp."""

    def log(p):
        return math.log(p) if p else -math.inf

    predictions, labels = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    losses = [
        -times(z, log(p + epsilon)) - times(1 - z, log(1 - p + epsilon))
        for p, z in zip(predictions.ravel().tolist(), labels.ravel().tolist(), strict=True)
    ]
    return np.array(losses, dtype=np.float64).reshape(predictions.shape)


# Linear head and sampled losses


def soften(logit, logit_scale=1.0, softcap=None):
    """softcap(scale * x): the scale first, then c tanh(x / c)."""
    scaled = logit_scale * logit
    return scaled if softcap is None else softcap * math.tanh(scaled / softcap)


def dot(x, w, bias=0.0):
    """x . w + bias, rounded once from exact products' rounded values."""
    return total([a * b for a, b in zip(x, w, strict=True)] + [bias])


def linear_logits(inputs, weights, biases=None, logit_scale=1.0, softcap=None, num_classes=None):
    """softcap(scale * (x . w + b)) for every class below num_classes."""
    layer = floats(weights)[:num_classes]
    bias = [0.0] * len(layer) if biases is None else floats(biases)[:num_classes]
    return np.array(
        [[soften(dot(x, w, b), logit_scale, softcap) for w, b in zip(layer, bias, strict=True)] for x in floats(inputs)]
    ).reshape(-1, len(layer))


def final_norm(states, kind, weight=None, bias=None, epsilon=1e-6):
    """(h - m) / sqrt(mean (h - m)^2 + epsilon) * weight + bias for each row; m is 0 for rms, the mean for layer."""
    rows = []
    for row in floats(states):
        mean = total(row) / len(row) if kind == "layer" else 0.0
        size = math.sqrt(total((x - mean) ** 2 for x in row) / len(row) + epsilon)
        g = [1.0] * len(row) if weight is None else floats(weight)
        b = [0.0] * len(row) if bias is None else floats(bias)
        rows.append([(x - mean) / size * gi + bi for x, gi, bi in zip(row, g, b, strict=True)])
    return np.array(rows)


def layer_row(weights, class_id, partition_strategy="div"):
    """The output layer's row of one class, from a whole layer or from its list of shards."""
    if not isinstance(weights, list):
        return floats(weights[class_id])
    count, size = len(weights), sum(len(shard) for shard in weights)
    if partition_strategy == "mod":
        return floats(weights[class_id % count][class_id // count])
    for shard in range(count):  # "div": the first size % count shards hold one class more
        rows = size // count + (shard < size % count)
        if class_id < rows:
            return floats(weights[shard][class_id])
        class_id -= rows
    raise IndexError("the class is past the last shard")


def sampled_logits(
    weights,
    biases,
    labels,
    inputs,
    sampled_values,
    remove_accidental_hits,
    subtract_log_q=True,
    partition_strategy="div",
):
    """For each row the logits of its true labels, and those of the candidates that are no accidental hit."""
    true_ids = id_rows(labels)
    candidates, true_counts, sampled_counts = (np.asarray(part).tolist() for part in sampled_values[:3])
    if not isinstance(labels, tuple):  # (N, T), or (N, 1) for every label of a row
        true_counts = [c * len(ids) if len(c) == 1 else c for c, ids in zip(true_counts, true_ids, strict=True)]
        true_counts = [count for row in true_counts for count in row]
    true_counts = iter(true_counts)

    def logit(x, class_id, count):
        score = dot(x, layer_row(weights, class_id, partition_strategy), float(biases[class_id]))
        return score - math.log(count) if subtract_log_q else score

    rows = []
    for x, ids in zip(floats(inputs), true_ids, strict=True):
        true = [logit(x, label, next(true_counts)) for label in ids]
        rest = [
            logit(x, candidate, count)
            for candidate, count in zip(candidates, sampled_counts, strict=True)
            if not (remove_accidental_hits and candidate in ids)
        ]
        rows.append((true, rest))
    return rows


def sampled_softmax_loss(weights, biases, labels, inputs, sampled_values, remove_accidental_hits=True, **options):
    """lse([t, s]) - mean(t) for each row."""
    losses = []
    for true, rest in sampled_logits(
        weights, biases, labels, inputs, sampled_values, remove_accidental_hits, **options
    ):
        losses.append(total(negative_log_likelihoods(true + rest)[: len(true)]) / len(true))
    return np.array(losses, dtype=np.float64)


def nce_loss(
    weights, biases, labels, inputs, sampled_values, remove_accidental_hits=False, true_label="uniform", **options
):
    """sum_k [softplus(t_k) - t_k z] + sum_j softplus(s_j) for each row, z = 1/T ("uniform") or 1 ("one")."""
    losses = []
    for true, rest in sampled_logits(
        weights, biases, labels, inputs, sampled_values, remove_accidental_hits, **options
    ):
        z = 1.0 if true_label == "one" else 1.0 / len(true)
        losses.append(total([sigmoid_term(t, z) for t in true] + [softplus(s) for s in rest]))
    return np.array(losses, dtype=np.float64)


# Expected counts of the samplers


def log_uniform_probability(class_id, range_max):
    """P(class) = log((c + 2) / (c + 1)) / log(V + 1)."""
    return math.log1p(1.0 / (class_id + 1)) / math.log1p(range_max)


def unigram_probabilities(unigrams, distortion=1.0):
    """P(class) = w^distortion / sum."""
    powers = [w**distortion if w else 0.0 for w in floats(unigrams)]
    return [power / total(powers) for power in powers]


def expected_count(probability, num_sampled, num_tries):
    """How often a class is expected in the sample: p S if no draw was rejected, else 1 - (1 - p)^tries."""
    if num_tries == num_sampled:
        return probability * num_sampled
    return -math.expm1(num_tries * math.log1p(-probability))


# Values of a row


def logsumexp(logits):
    """log sum_j exp(x_j) of each row."""
    return np.array([log_sum_exp(row) for row in floats(logits)], dtype=np.float64)


def rank(logits, labels):
    """1 + the number of classes whose logit is strictly greater than the label's."""
    pairs = zip(floats(logits), np.asarray(labels).tolist(), strict=True)
    return np.array([1 + sum(x > row[y] for x in row) for row, y in pairs], dtype=np.int64)


def tied(logits, labels):
    """Whether another class has the very logit of the label."""
    pairs = zip(floats(logits), np.asarray(labels).tolist(), strict=True)
    return np.array([row.count(row[y]) > 1 for row, y in pairs], dtype=bool)


def argmax(logits):
    """The lowest id among the greatest logits."""
    return np.array([row.index(max(row)) for row in floats(logits)], dtype=np.int64)


def top_k_hits(logits, labels, k):
    """Whether the label's rank is at most k."""
    return rank(logits, labels) <= k


def entropy(logits):
    """-sum_j p_j log p_j of each row's softmax, in nats."""
    rows = (negative_log_likelihoods(row) for row in floats(logits))
    return np.array([total(times(math.exp(-n), n) for n in row) for row in rows], dtype=np.float64)


# Values of a corpus


def compute_weighted_loss(
    losses, weights=1.0, reduction="sum_by_nonzero_weights", ignored=None, denominator_weights=1.0
):
    """Losses weighted and reduced; an example ignored or of weight 0 adds nothing, nothing to average gives NaN.

    `denominator_weights` are weights already inside the losses (PyTorch's class weights of the labels): they enter the
    mean's denominator alone.
    """
    losses = np.asarray(losses, dtype=np.float64)
    weight, below = (np.broadcast_to(np.asarray(w, np.float64), losses.shape) for w in (weights, denominator_weights))
    kept = ~np.broadcast_to(np.asarray(False if ignored is None else ignored), losses.shape).ravel()
    rows = list(
        zip(losses.ravel().tolist(), weight.ravel().tolist(), below.ravel().tolist(), kept.tolist(), strict=True)
    )
    weighted = [w * loss if w != 0 and keep else 0.0 for loss, w, _, keep in rows]
    if reduction == "none":
        return np.array(weighted, dtype=np.float64).reshape(losses.shape)
    divisor = {
        "sum": lambda: 1.0,
        "mean": lambda: total(w * b for _, w, b, keep in rows if keep),
        "sum_over_batch_size": lambda: sum(keep for *_, keep in rows),
        "sum_by_nonzero_weights": lambda: sum(w != 0 and keep for _, w, _, keep in rows),
    }[reduction]()
    return total(weighted) / divisor if divisor else math.nan


def perplexity(losses, weights=1.0):
    """exp of the corpus mean."""
    return math.exp(compute_weighted_loss(losses, weights, "mean"))


def stderr(losses):
    """The standard error of the mean: the standard deviation (n - 1) over sqrt n."""
    losses = floats(losses)
    mean = total(losses) / len(losses)
    return math.sqrt(total((loss - mean) ** 2 for loss in losses) / (len(losses) - 1) / len(losses))


def perplexity_stderr(losses):
    """The delta method: perplexity times the mean's standard error."""
    return perplexity(losses) * stderr(losses)


def bits_per_byte(losses, num_bytes):
    """Sum of the losses in bits over the sum of bytes."""
    return total(floats(losses)) / total(floats(num_bytes)) / math.log(2)


# Two models


def log_softmax(logits):
    """x - log sum exp x of each row, in long doubles."""
    x = np.asarray(logits).astype(np.longdouble)
    with np.errstate(invalid="ignore"):
        x = x - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def _kl(log_p, log_q):
    """Sum of p (ln p - ln q) + (q - p) over the classes that one side has; the second part sums to 0."""
    p, q = np.exp(log_p), np.exp(log_q)
    with np.errstate(invalid="ignore", over="ignore"):
        r = log_q - log_p
        small = r * r * (np.longdouble(0.5) + r / 6 + r * r / 24 + r**3 / 120 + r**4 / 720)
        term = np.where(np.abs(r) < 1e-3, p * small, np.where(np.abs(r) < 1, p * (np.expm1(r) - r), q - p - p * r))
    term = np.where(np.isneginf(log_q), np.inf, np.where(np.isneginf(log_p), q, term))
    return np.where(np.isneginf(log_p) & np.isneginf(log_q), np.longdouble(0), term).sum(axis=1)


def kl_divergence(reference, candidate, reverse=False):
    """KL(P, Q) of the softmaxes of two arrays of logits; KL(Q, P) with reverse."""
    log_p, log_q = log_softmax(reference), log_softmax(candidate)
    return _kl(log_q, log_p) if reverse else _kl(log_p, log_q)


def js_divergence(reference, candidate):
    """The mean of the divergences of both from their middle."""
    log_p, log_q = log_softmax(reference), log_softmax(candidate)
    with np.errstate(invalid="ignore"):
        r = log_q - log_p
        near = np.abs(r) < 1  # ln m - ln p = log((1 + q / p) / 2)
        to_p = np.where(
            near, np.log1p(np.expm1(np.where(near, r, 0)) / 2), np.logaddexp(0, r) - np.log(np.longdouble(2))
        )
        to_q = np.where(
            near, np.log1p(np.expm1(np.where(near, -r, 0)) / 2), np.logaddexp(0, -r) - np.log(np.longdouble(2))
        )
        middle_of_p = np.where(np.isnan(to_p), -np.inf, np.where(np.isneginf(log_p), log_q - np.log(2), log_p + to_p))
        middle_of_q = np.where(np.isnan(to_q), -np.inf, np.where(np.isneginf(log_q), log_p - np.log(2), log_q + to_q))
    return (_kl(log_p, middle_of_p) + _kl(log_q, middle_of_q)) / 2


def total_variation(reference, candidate):
    """Half the sum of |p - q|."""
    log_p, log_q = log_softmax(reference), log_softmax(candidate)
    p, q = np.exp(log_p), np.exp(log_q)
    with np.errstate(invalid="ignore", over="ignore"):
        r = log_q - log_p
        near = np.abs(r) < 1
        return np.where(near, p * np.abs(np.expm1(np.where(near, r, 0))), np.abs(p - q)).sum(axis=1) / 2


def logit_difference(reference, candidate):
    """The mean of |ln p - ln q| over the classes that both sides have."""
    log_p, log_q = log_softmax(reference), log_softmax(candidate)
    both = np.isfinite(log_p) & np.isfinite(log_q)
    return np.array([np.abs(q[m] - p[m]).mean() for p, q, m in zip(log_p, log_q, both, strict=True)])


def top_rank(logits, others):
    """The rank that `others` gives to the top class of `logits`, row by row."""
    return rank(others, argmax(logits))


def percentile(values, percent):
    """Linear between neighbours at the position percent / 100 (n - 1), infinities last."""
    ordered = sorted(floats(values))
    place = percent / 100 * (len(ordered) - 1)
    low = math.floor(place)
    share = place - low
    return ordered[low] if share == 0 else ordered[low] + share * (ordered[low + 1] - ordered[low])


def cluster_stderr(values, clusters, weights=None):
    """sqrt(C / (C - 1) sum_c (sum_{i in c} w_i (v_i - mean))^2) / sum w over clusters that have a weight; or NaN."""
    weights = [1.0] * len(values) if weights is None else floats(weights)
    rows = [row for row in zip(floats(values), clusters, weights, strict=True) if row[2] != 0]
    names, mass = {c for _, c, _ in rows}, total(w for _, _, w in rows)
    if len(names) < 2:
        return math.nan
    mean = total(w * v for v, _, w in rows) / mass
    sums = [total(w * (v - mean) for v, c, w in rows if c == name) for name in names]
    return math.sqrt(len(names) / (len(names) - 1) * total(s * s for s in sums)) / mass


def mcnemar_p(to_wrong, to_right):
    """Two-sided p-value of the exact binomial test that both flips are as likely."""
    flips = to_wrong + to_right
    tail = sum(math.comb(flips, k) for k in range(min(to_wrong, to_right) + 1))
    return min(1.0, 2 * tail / 2**flips) if flips else 1.0


# The public functions' own arguments


# ---- what one number hides


def probabilities(logits):
    """Softmax of each row."""
    return [[math.exp(x) for x in row] for row in log_softmax(logits)]


def brier(logits, labels):
    """Sum over classes of (p - t)^2, t = 1 at the label."""
    rows = zip(probabilities(logits), labels, strict=True)
    return [math.fsum((p - (c == y)) ** 2 for c, p in enumerate(row)) for row, y in rows]


def calibration(logits, labels, weights=None, num_bins=15):
    """Bins [i / n, (i + 1) / n) of the top probability as (rows, mean confidence, accuracy), and the ece."""
    weights = [1.0] * len(labels) if weights is None else weights
    bins = [[] for _ in range(num_bins)]
    for row, guess, y, w in zip(probabilities(logits), argmax(logits), labels, weights, strict=True):
        bins[min(int(max(row) * num_bins), num_bins - 1)].append((w, max(row), float(guess == y)))
    shown, apart = [], []
    for members in bins:
        mass = math.fsum(w for w, _, _ in members)
        pair = [math.fsum(w * part[i] for w, *part in members) for i in (0, 1)]
        apart.append(abs(pair[0] - pair[1]))
        shown.append((len(members), *(value / mass if mass else None for value in pair)))
    return shown, math.fsum(apart) / math.fsum(weights)


def tie_places(logits, labels):
    """(first, last) place that the label may have among the classes with its logit."""
    found = []
    for row, y in zip(logits, labels, strict=True):
        above, equal = sum(x > row[y] for x in row), sum(x == row[y] for x in row)
        found.append((above + 1, above + equal))
    return found


def highest(logits, k):
    """(ids, log probabilities) of the k highest classes of each row that are not at -inf, ties by id."""
    found = []
    for row, logs in zip(logits, log_softmax(logits), strict=True):
        ids = sorted((c for c in range(len(row)) if row[c] > -math.inf), key=lambda c: (-row[c], c))[:k]
        found.append((ids, [logs[c] for c in ids]))
    return found


def by_bins(losses, correct, places):
    """{bin: (rows, mean loss, accuracy)}."""
    found = {}
    for name in sorted(set(places)):
        mine = [i for i, place in enumerate(places) if place == name]
        found[name] = (len(mine), *(math.fsum(v[i] for i in mine) / len(mine) for v in (losses, correct)))
    return found


def decade(count):
    """0 for a count below 1, else 1 + the exponent of ten."""
    return 0 if count < 1 else len(str(int(count)))


def power_of_two(position):
    """0 for position 0, else 1 + the exponent of two."""
    return int(position).bit_length()


def call(function, *, weights=None, ignore_index=None, reduction=None, **arguments):
    """What the public function of this name must return for these arguments (sizes and threads change nothing)."""
    arguments = {k: v for k, v in arguments.items() if k not in ("num_threads", "num_sampled", "num_true", "seed")}
    if function in ("sampled_softmax_loss", "nce_loss"):
        arguments.pop("num_classes", None)
        return globals()[function](weights, **arguments)
    if function == "compute_weighted_loss":
        options = {} if reduction is None else {"reduction": reduction}
        return compute_weighted_loss(weights=1.0 if weights is None else weights, **arguments, **options)
    if function == "linear_cross_entropy":
        head = ("inputs", "biases", "logit_scale", "softcap", "num_classes")
        logits = linear_logits(weights=weights, **{k: arguments.pop(k) for k in head if k in arguments})
        function, weights, arguments = "sparse_softmax_cross_entropy", None, {"logits": logits, **arguments}
    ignored, below = None, 1.0
    if function == "sparse_softmax_cross_entropy":
        labels = np.asarray(arguments["labels"])
        ignored = np.zeros(labels.shape, bool) if ignore_index is None else labels == ignore_index
        arguments["labels"] = np.where(ignored, 0, labels).astype(np.int64)
        if arguments.get("class_weights") is not None:
            below = np.asarray(arguments["class_weights"], dtype=np.float64)[arguments["labels"]]
    losses = globals()[function](**arguments)
    return compute_weighted_loss(losses, 1.0 if weights is None else weights, reduction or "none", ignored, below)


def next_tokens(sequences, score_from=0):
    """(row of all, label) of every row that is scored: on the next token of its own sequence, from a position on."""
    pairs, first = [], 0
    for tokens in sequences:
        for t in range(len(tokens) - 1):
            if t >= score_from:
                pairs.append((first + t, int(tokens[t + 1])))
        first += len(tokens)
    return pairs


# Rankings


def ranking(row, true, top_k, excluded=(), counts=None):
    """{"recall@k": ..., ...} of a row of logits and its true classes; classes at -inf or excluded do not exist."""
    order = sorted(
        (c for c, x in enumerate(row) if c not in set(excluded) and x > -math.inf), key=lambda c: (-row[c], c)
    )
    found = {}
    for k in top_k:
        hits = [i for i, c in enumerate(order[:k], 1) if c in set(true)]
        best = total(1 / math.log2(i + 1) for i in range(1, min(k, len(true)) + 1))
        found[f"recall@{k}"] = len(hits) / len(true)
        found[f"precision@{k}"] = len(hits) / k
        found[f"ndcg@{k}"] = total(1 / math.log2(i + 1) for i in hits) / best
        found[f"map@{k}"] = total((j + 1) / i for j, i in enumerate(hits)) / len(true)
        found[f"hit_rate@{k}"] = float(bool(hits))
        found[f"mrr@{k}"] = 1 / hits[0] if hits else 0.0
        if counts is not None:
            scale = (math.log(sum(counts)) - 1) * 2.5**0.55
            gains = [1 + scale * math.exp(-0.55 * math.log(counts[order[i - 1]] + 1.5)) for i in hits]
            found[f"psp@{k}"] = total(gains) / k
    return found
