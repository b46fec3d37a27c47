"""The arbiter: who gets which nodes, who waits, who yields, and why. A pure core: facts and `now` in, decisions out."""
