"""What avops does on a device, beside torch, in one process."""
