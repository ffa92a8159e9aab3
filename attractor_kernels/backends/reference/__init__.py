"""Plain torch, any dtype, any device: the truth the other backends are tested against."""
