"""The lab: a mixed cluster on one Linux machine, out of network namespaces, shaped links and private mounts.

`spec` says what a lab is, `spec_toml` reads it from a file, `layout` and `shaping` turn it into addresses, interfaces
and the lines that `ip` and `tc` are given; `lab_runtime` raises it, `Lab` is the handle to one that stands. A leaf: it
knows no other component, and nothing of it is imported by `import atoll`.
"""
