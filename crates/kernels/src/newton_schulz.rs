//! newton_schulz
