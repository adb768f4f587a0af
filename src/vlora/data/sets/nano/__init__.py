"""The nano set: pictures that are drawn anew whenever they are asked for, and questions about them.

    packages ─ fetch ─► digits, photographs, cut-outs ┐
                                                      ├─ picture(set, split, number) ─► image, turns
    shapes and colours, from nothing but a seed ──────┘

| set | file | pictures | asks for |
|---|---|---|---|
| `scenes` | `scenes.py` | up to six coloured shapes | colour, shape, yes or no, how many, where, larger, captions |
| `pairs` | `pairs.py` | two of them | left, right, above, below; now and then colour, shape, where, larger |
| `sizes` | `sizes.py` | two of them | larger, smaller, small, large; now and then colour, shape, left, above |
| `crowds` | `crowds.py` | three to five of them | which colour goes with which shape; now and then the rest |
| `counts` | `counts.py` | up to six, mostly of one kind | how many; now and then colour, shape |
| `digits` | `digits.py` | one or two handwritten digits | reading, the larger, sum, even or odd, yes or no |
| `emoji` | `emoji.py` | an emoji, turned and scaled, on any ground | name, group, yes or no |
| `stamps` | `stamps.py` | a cut-out photograph or drawing on any ground | head noun, caption, yes or no |
| `nouns` | `nouns.py` | an emoji or a drawing of what a stamp may show | noun, yes or no, one noun or another |
| `clipart` | `clipart.py` | a drawing of Open Clip Art | topic, yes or no |
| `texts` | `texts.py` | of another set | what no picture answers |

A picture is a function of (set, split, number) alone, so that any of them can be drawn in any order by any worker, and
none has to be stored. What only the test may show is named in `held_out.json`. All but `scenes` and the
four below it need what `fetch.py` brings.
"""
