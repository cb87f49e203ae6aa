"""Write the direction numbers of Sobol's sequence that quadgrad carries, from the file that SciPy carries.

Both are Joe and Kuo's table new-joe-kuo-6.21201 (https://web.maths.unsw.edu.au/~fkuo/sobol/). SciPy's holds all of
its 21,201 dimensions; 4,096 are enough here, and a fifth of its size.
"""

from __future__ import annotations

import pathlib

import numpy as np
import scipy

DIMENSIONS = 4096
DEGREE = 16  # of the last polynomial among them
THEIRS = pathlib.Path(scipy.__file__).parent / "stats" / "_sobol_direction_numbers.npz"
OURS = pathlib.Path(__file__).parents[2] / "src" / "quadgrad" / "_core" / "points" / "joe_kuo.npz"


def main() -> None:
    with np.load(THEIRS) as table:
        polynomials, initial = table["poly"][:DIMENSIONS], table["vinit"][:DIMENSIONS]
    assert not initial[:, DEGREE:].any()
    np.savez_compressed(
        OURS, polynomials=polynomials.astype(np.uint32), initial=initial[:, :DEGREE].astype(np.uint16)
    )


if __name__ == "__main__":
    main()
