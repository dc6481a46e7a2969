"""Key managers: where keys are kept, behind one interface."""
