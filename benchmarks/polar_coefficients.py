"""Makes the table of src/optim/polar_express.cpp and says what it does to singular values.

    python polar_coefficients.py        needs numpy; takes seconds

An iteration maps every singular value x to x P(x²), with P made by k squares: y <- scale y² + add g + identity, from
y = g = x². k squares have 2k + 1 free coefficients: all polynomials of degree 2 in g for k = 1, of degree 4 for k = 2;
of degree 8 those that are all but as good as the best of all (a smallest value grows by 13.6 where that one has 13.8).

As in Polar Express (Amsel et al. 2025, arXiv 2505.16932) each iteration is the best for the interval [l, u] that the one
before leaves: the one with the least maximum of |1 - x P(x²)|, after which u = 2 - l. Values below CUSHION u do not
count, or their growth would cost the others too much; SAFETY leaves room for rounding in all iterations but the last.
"""

import numpy as np

SQUARES = (3, 3, 2)  # of each iteration: degrees 17, 17 and 9
SMALLEST, CUSHION, SAFETY = 1e-3, 0.01, 1.02


def polynomial(squares, g):
    """y after each square."""
    y = [g]
    for scale, add, identity in squares:
        y.append(scale * y[-1] ** 2 + add * g + identity)
    return y


def singular_values(table, x):
    for squares in table:
        x = x * polynomial(squares, x * x)[-1]
    return x


def unpacked(free):
    """Rows of an iteration from its free coefficients: all scales but the last are one."""
    rows = np.column_stack([np.ones(len(free) // 2), free[:-1].reshape(-1, 2)])
    rows[-1, 0] = free[-1]
    return rows


def error_and_slope(free, x):
    """x P(x²) - 1 and its derivatives by the free coefficients."""
    g, y, slope = x * x, x * x, np.zeros((len(x), len(free)))
    for j, (scale, add, identity) in enumerate(unpacked(free)):
        slope = 2 * scale * y[:, None] * slope
        slope[:, 2 * j] += g
        slope[:, 2 * j + 1] += 1
        if 2 * j + 3 == len(free):
            slope[:, -1] += y * y
        y = scale * y * y + add * g + identity
    return x * y - 1, x[:, None] * slope


def least(free, x, p, rounds):
    """Levenberg and Marquardt's way to the least sum of |error|^p."""
    damping = 1e-3
    error, slope = error_and_slope(free, x)
    size = np.sum(np.abs(error) ** p)
    for _ in range(rounds):
        weight = np.abs(error / np.abs(error).max()) ** (p - 2)
        hessian, gradient = slope.T @ (weight[:, None] * slope), slope.T @ (weight * error) / (p - 1)
        while damping < 1e6:
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian) + 1e-30), gradient)
            with np.errstate(all="ignore"):
                new_error, new_slope = error_and_slope(free - step, x)
                new_size = np.sum(np.abs(new_error) ** p)
            if new_size < size:
                break
            damping *= 8
        else:
            break
        done = size - new_size < 1e-12 * size
        free, error, slope, size, damping = free - step, new_error, new_slope, new_size, max(damping / 5, 1e-14)
        if done:
            break
    return np.abs(error).max(), free


def best(squares, smallest):
    """Rows of the iteration with the least error on [smallest, 1], from many starts."""
    random = np.random.default_rng(0)
    points = 100 * 2 ** (squares - 1)
    x = np.unique(np.concatenate([np.geomspace(smallest, 1, points), np.sin(np.linspace(np.arcsin(smallest), np.pi / 2, points))]))
    x[-1] = 1
    fits = []
    for _ in range(60):
        start = random.normal(size=2 * squares + 1) * ([2, 1] * squares + [0])
        start[:2] = -random.uniform(0.5, 2), random.uniform(0, 0.5)
        start[-1] = 10 ** random.uniform(-1, 3)
        fits.append(least(least(start, x, 2, 60)[1], x, 4, 40))
    fits = sorted(fits, key=lambda fit: fit[0])[:4]
    for p in (8, 16, 32, 64, 128, 256, 512):
        fits = [least(free, x, p, 60) for _, free in fits]
    return unpacked(min(fits, key=lambda fit: fit[0])[1])


def fit_to(rows, upper, factor):
    """The same for x in [0, upper], its result times factor, and intermediate results of at most 1 for fp16."""
    rows, stored = rows.copy(), [upper**2]
    largest = [np.abs(y).max() for y in polynomial(rows, np.linspace(0, 1, 10001))]
    for j, row in enumerate(rows):
        stored.append(factor / upper if j == len(rows) - 1 else 1 / largest[j + 1])
        row *= stored[-1] / np.array([stored[-2] ** 2, stored[0], 1])
    return rows


def make_table():
    table, l, u = [], SMALLEST, 1.0
    for i, squares in enumerate(SQUARES):
        rows = best(squares, max(l / u, CUSHION))
        x = np.linspace(l, u, 20001)
        reached = singular_values([fit_to(rows, u, 1)], x)
        safety = SAFETY if i < len(SQUARES) - 1 else 1
        table.append(fit_to(rows, u * safety, 2 / (reached[0] + reached.max())))
        l = singular_values(table[-1:], np.array(l))
        u = 2 - l
    return table


def main():
    table = make_table()
    for squares in table:
        print("{" + ", ".join("{%s}" % ", ".join(f"{float(f'{v:.8g}')!r}" for v in row) for row in squares) + "},")
    x = np.concatenate([np.geomspace(1e-6, SMALLEST, 1000), np.linspace(SMALLEST, 1, 200001)]) / SAFETY
    after = singular_values(table, x)
    print(f"smallest values grow by {after[0] / x[0]:.0f}; all end in {after.min():.1e} to {after.max():.3f}, "
          f"from {SMALLEST} on in {after[x >= SMALLEST].min():.3f} to {after.max():.3f}")
    for i in range(len(table)):
        for y in polynomial(table[i], singular_values(table[:i], x) ** 2)[1:]:
            print(f"iteration {i + 1}: values of {y.min():.3f} to {y.max():.3f}")


if __name__ == "__main__":
    main()
