"""What the arm room sends to the hardware: one interface, one module per kind of controller."""
