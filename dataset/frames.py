"""pandas, whose tables hold text of any kind.

    from dataset.frames import pd    # where it is used: it takes most of a second to load

Where pyarrow is installed, pandas keeps text in its form, which is UTF-8: the name of a file that is none would be an
error.
"""

from __future__ import annotations

import pandas as pd

pd.options.mode.string_storage = "python"

__all__ = ["pd"]
