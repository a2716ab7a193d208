"""Every merge method once more, written from its formula in float64 over whole arrays, sorted and masked plainly.

Slow and short on purpose: it shares no code with the package. `masks` of random methods come from the caller.
"""

from __future__ import annotations

import math

import numpy as np


def unit(x):
    norm = np.linalg.norm(x)
    return x / norm if norm else x * 0


def arc(a, b, t, parallel):
    cosine = float(np.sum(unit(a) * unit(b))) if a.any() and b.any() else 1.0
    if abs(cosine) > parallel:
        return (1 - t) * a + t * b
    omega = math.acos(max(-1, min(1, cosine)))
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)


def linear(xs, w, base, normalize=True):
    total = sum(w) if normalize else 1
    return sum(wi * x for wi, x in zip(w, xs)) / total


def task_arithmetic(xs, w, base, scale=1.0, normalize=False):
    return base + scale * sum(wi * (x - base) for wi, x in zip(w, xs)) / (sum(w) if normalize else 1)


def slerp(xs, w, base):
    return arc(*xs, w[1] / sum(w), 0.9995)


def split_slerp(xs, w, base, split=0.5, offset=0, total=None):
    border = min(max(round(split * (xs[0].size if total is None else total)) - offset, 0), xs[0].size)
    t = w[1] / sum(w)
    before, behind = (arc(*xs, s, math.sqrt(1 - 1e-12)).ravel() for s in (t, 1 - t))
    return np.concatenate([before[:border], behind[border:]]).reshape(xs[0].shape)


def nuslerp(xs, w, base, relative=False):
    origin = base if relative else 0
    return origin + arc(xs[0] - origin, xs[1] - origin, w[1] / sum(w), math.sqrt(1 - 1e-16))


def multislerp(xs, w, base, relative=False, normalize=True):
    """The long way, through the tangent space."""
    if len(xs) == 1:
        return xs[0]
    origin = base if relative else 0
    deltas = [x - origin for x in xs]
    w = [wi / sum(w) for wi in w] if normalize else w
    mean = unit(sum(wi * unit(d) for wi, d in zip(w, deltas)))
    tangent = sum(wi * (unit(d) - np.sum(unit(d) * mean) * mean) for wi, d in zip(w, deltas))
    length = np.linalg.norm(tangent)
    direction = mean * math.cos(length) + (tangent / length * math.sin(length) if length > 1e-15 else 0)
    return origin + direction * sum(wi * np.linalg.norm(d) for wi, d in zip(w, deltas))


def karcher(xs, w, base, max_iter=10, tol=1e-5):
    w = [wi / sum(w) for wi in w]
    units = [unit(x) for x in xs]
    mean = unit(sum(wi * u for wi, u in zip(w, units)))
    for _ in range(max_iter):
        tangent = 0
        for wi, u in zip(w, units):
            angle = math.acos(max(-1, min(1, float(np.sum(u * mean)))))
            if angle >= tol:
                tangent = tangent + wi * angle / math.sin(angle) * (u - math.cos(angle) * mean)
        length = np.linalg.norm(tangent)
        if length < tol:
            break
        mean = unit(math.cos(length) * mean + math.sin(length) * tangent / length)
    return mean * sum(wi * np.linalg.norm(x) for wi, x in zip(w, xs))


def model_stock(xs, w, base):
    deltas = [x - base for x in xs]
    k = len(xs)
    cosine = np.mean([np.sum(unit(deltas[i]) * unit(deltas[j])) for i in range(k) for j in range(i)])
    t = k * cosine / (1 + (k - 1) * cosine)
    return t * linear(xs, w, base) + (1 - t) * base


def order(x):
    """Positions of a flat array from the smallest magnitude to the largest, equal ones by position."""
    return np.argsort(np.abs(x.astype(np.float32)), axis=None, kind="stable")


def trimmed(x, density):
    if density >= 1:
        return np.ones(x.shape, bool)
    mask = np.zeros(x.size, bool)
    mask[order(x)[x.size - max(1, int(density * x.size)) :]] = True
    return mask.reshape(x.shape)


def middle(x, density, gamma):
    if density >= 1:
        return np.ones(x.shape, bool)
    kept = int(density * x.size)
    low = max(0, x.size - kept - int(gamma * x.size))
    mask = np.zeros(x.size, bool)
    mask[order(x)[low : low + kept]] = True
    return mask.reshape(x.shape)


def rescaled(delta, mask, rescale, density):
    left = delta * mask
    if rescale == "l1" and np.abs(left).sum() > 0:
        return left * np.abs(delta).sum() / np.abs(left).sum()
    return left / density if rescale == "density" else left


def consensus(deltas, w, base, elect, normalize, scale):
    parts = [wi * d for wi, d in zip(w, deltas)]
    if not elect:
        return base + scale * sum(parts) / (sum(w) if normalize else 1)
    sign = np.where(sum(parts) >= 0, 1, -1)
    agree = [np.sign(p) == sign for p in parts]
    mass = sum(wi * a for wi, a in zip(w, agree)) if normalize else np.ones(base.shape)
    return base + scale * sum(p * a for p, a in zip(parts, agree)) / np.where(mass == 0, 1, mass)


def thinned(xs, w, base, masks, elect, normalize, scale=1.0, rescale="none", density=1.0):
    deltas = [rescaled(x - base, mask, rescale, density) for x, mask in zip(xs, masks)]
    return consensus(deltas, w, base, elect, normalize, scale)


def sce(xs, w, base, select_topk=1.0, scale=1.0):
    deltas = np.stack([x - base for x in xs])
    if select_topk < 1:
        variance = deltas.var(axis=0)
        kept = int(np.count_nonzero(variance) * select_topk)
        mask = np.zeros(base.size, bool)
        mask[np.argsort(variance, axis=None, kind="stable")[base.size - kept :]] = True
        deltas = deltas * mask.reshape(base.shape)
    sign = np.where(deltas.sum(axis=0) >= 0, 1, -1)
    squares = np.array([wi * np.mean(d**2) for wi, d in zip(w, deltas)])
    shares = squares / squares.sum() if squares.sum() else np.full(len(xs), 1 / len(xs))
    agree = np.sign(deltas) == sign
    mass = np.tensordot(shares, agree, 1)
    return base + scale * np.tensordot(shares, deltas * agree, 1) / np.where(mass == 0, 1, mass)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def arcee_fusion(xs, w, base):
    p, q = softmax(xs[0]) + 1e-8, softmax(base) + 1e-8
    importance = np.abs(xs[0] - base) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    ranked = np.sort(importance, axis=None)
    q1, median, q3 = (ranked[int(q * (ranked.size - 1))] for q in (0.25, 0.5, 0.75))
    return np.where(importance >= median + 1.5 * (q3 - q1), xs[0], base)


def ram(xs, w, base, epsilon=1e-5, r=0.0, alpha=0.2):
    deltas = [x - base for x in xs]
    changed = [np.abs(d) > epsilon for d in deltas]
    count = sum(c.astype(int) for c in changed)
    total = np.zeros(base.shape)
    for d, c in zip(deltas, changed):
        growth = 1 + r * min(alpha, (c & (count > 1)).sum() / max((c & (count == 1)).sum(), epsilon))
        total += np.where(c, np.where(count == 1, d * growth, d / np.maximum(count, 1)), 0)
    return base + total


def ramplus_tl(xs, w, base, r=0.1, alpha=0.2, epsilon=1e-5):
    return ram(xs, w, base, epsilon, r, alpha)


def nearswap(xs, w, base, t=0.001):
    share = np.minimum(1, t / np.maximum(np.abs(xs[0] - base), 1e-6))
    return base + share * (xs[0] - base)


def zero_aware(xs, w, base, scale=1.0):
    xs = [np.where(x == 0, 0, base + scale * (x - base)) for x in xs] if scale != 1 else xs
    out = np.zeros(xs[0].shape)
    for place in np.ndindex(out.shape):
        here = [(wi, x[place]) for wi, x in zip(w, xs) if x[place] != 0]
        mass = sum(wi for wi, _ in here)
        if here:
            out[place] = sum(wi * x for wi, x in here) / mass if mass else np.mean([x for _, x in here])
    return out
