//! Normal deviates as a pure function of (key, index), whatever holds them.

/// 2⁶⁴ over the golden ratio, the increment of SplitMix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finalizer of SplitMix64 (Steele et al. 2014).
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Deviates 2j and 2j + 1 of the stream `key`: Box & Muller (1958) on two hashed uniforms.
pub fn normals(key: u64, j: u64) -> (f64, f64) {
    let uniform = |n: u64| {
        ((mix(key.wrapping_add(n.wrapping_mul(GOLDEN))) >> 11) as f64 + 0.5) / 2f64.powi(53)
    };
    let radius = (-2.0 * libm::log(uniform(2 * j))).sqrt();
    let (sin, cos) = libm::sincos(std::f64::consts::TAU * uniform(2 * j + 1));
    (radius * cos, radius * sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviates_are_normal() {
        let n = 100_000;
        let pairs = (0..n / 2).map(|j| normals(mix(7), j));
        let values: Vec<f64> = pairs.flat_map(|(even, odd)| [even, odd]).collect();
        let moment = |p: i32| values.iter().map(|x| x.powi(p)).sum::<f64>() / n as f64;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.02);
        assert!(moment(3).abs() < 0.05 && (moment(4) - 3.0).abs() < 0.1);
    }
}
