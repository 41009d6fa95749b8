"""Looking at networks: the ledger (shapes, parameters, arithmetic, memory) and every picture."""
