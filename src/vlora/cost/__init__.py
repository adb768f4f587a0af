"""The bill: FLOPs, parameters and bytes by formula, for any sizes, without loading weights.

| file | what |
|---|---|
| `formulas.py` | every equation, one function each |
| `shapes.py` | the sizes they count with, from configurations |
| `known.py` | sizes of common models |
| `sources.py` | from a name or a path to a configuration |
| `bill.py` | the formulas put together: `cost` |
| `plot.py` | FLOPs against the number of visual tokens |

    from vlora.cost import cost

    bill = cost("vicuna-7b", "clip-vit-l-14-336", text_tokens=32)
    bill.vlora.first_token, bill.ratios.first_token
"""

from __future__ import annotations

from .bill import Bill, cost

__all__ = ["Bill", "cost"]
