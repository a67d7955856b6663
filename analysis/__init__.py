"""One question about a pair a file."""

if __name__ != "ppvae.analysis":
    raise ImportError("import ppvae.analysis, not analysis: a second copy of these classes would be unequal to the first")
