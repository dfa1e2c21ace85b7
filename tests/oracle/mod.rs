//! The second implementation and its comparisons; an error is relative to the norm of the
//! reference, and infinite where a value is not finite.

mod attention_ops;
mod basic;
mod dense_ops;
mod engine;
mod gradients;
mod moe_ops;
mod norm_ops;
mod op;
mod optimizers;
mod random;
mod reference;
mod text;
mod training;

/// The Euclidean norm.
fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// `‖a − b‖ / max(‖b‖, floor)`; infinite when a value is not finite.
fn relative_error(a: &[f64], b: &[f64], floor: f64) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let error = norm(&difference) / norm(b).max(floor);
    if error.is_finite() { error } else { f64::INFINITY }
}
