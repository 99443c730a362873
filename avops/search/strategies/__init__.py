"""How λ is chosen: strategies behind one interface, each a pure function of what it was told."""
