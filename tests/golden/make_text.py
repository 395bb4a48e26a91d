"""make_text.py FOLDER [FILES]: text like source code, the same bytes on every machine and with every Python.

About 5 KB a file, 64 files unless told otherwise. Words follow Zipf's law and lines follow a small grammar, so that a
model of a few thousand parameters has something to learn within seconds.
"""
import sys

SYLLABLES = "ba co di fu ge ha ki lo mu ne pa ro si ta ve wo xi ya zu qu".split()
STATEMENTS = [
    "    {a} = {b} + {n}\n",
    "    {a} = {b}.{c}({a}, {n})\n",
    "    if {a} < {n}:\n        return {b}\n",
    "    for {a} in range({n}):\n        {b} += {c}[{a}]\n",
    "    # {a} {b} {c} {a}\n",
    "    print(\"{a}: {b}\")\n",
]


class Numbers:
    """A linear congruential generator of our own: no library's promise is needed."""

    def __init__(self, seed):
        self.state = seed

    def below(self, bound):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % bound


def word(numbers):
    # The smaller of three draws falls off as common words do.
    rank = min(numbers.below(400) for _ in range(3))
    return SYLLABLES[rank % 20] + SYLLABLES[rank // 20] + ("" if rank % 3 else SYLLABLES[rank % 7])


def document(index):
    numbers = Numbers(index + 1)
    text = f"# module {word(numbers)}\nimport {word(numbers)}\n"
    while len(text) < 5000:
        text += f"\n\ndef {word(numbers)}({word(numbers)}, {word(numbers)}):\n"
        for _ in range(2 + numbers.below(5)):
            names = {name: word(numbers) for name in "abc"}
            text += STATEMENTS[numbers.below(len(STATEMENTS))].format(n=numbers.below(100), **names)
        text += f"    return {word(numbers)}\n"
    return text


def main():
    import pathlib

    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(int(sys.argv[2]) if len(sys.argv) > 2 else 64):
        (folder / f"text_{index:03d}.txt").write_bytes(document(index).encode())


if __name__ == "__main__":
    main()
