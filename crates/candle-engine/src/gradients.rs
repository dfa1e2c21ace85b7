//! The backward pass of candle, and what it forgets.

use std::collections::HashSet;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use crate::CandleError;
use crate::parameter::Parameter;

/// Families of candle's operations that drop gradients without an error, and their slow forms that
/// do not.
pub(crate) const SILENT: [&str; 8] = [
    "ops::softmax_last_dim (ops::softmax keeps them)",
    "ops::layer_norm and ops::rms_norm, which LayerNorm and RmsNorm call where their input is \
     contiguous (ops::layer_norm_slow and ops::rms_norm_slow keep them)",
    "rotary_emb::rope, rope_i and rope_thd (rope_slow and rope_i_slow keep them)",
    "ops::sdpa",
    "products with quantized matrices",
    "detach",
    "casts to integers, comparisons, round, floor, ceil, sign, argmin, argmax and argsort",
    "scatter, of what it overwrites (scatter_add, of what it adds to)",
];

/// Refuses a loss that reads a variable that is none of the parameters.
pub(crate) fn check_variables(loss: &Tensor, parameters: &[Parameter]) -> Result<(), CandleError> {
    let known: HashSet<_> = parameters.iter().map(|parameter| parameter.var.id()).collect();
    let is_outside = |node: &&&Tensor| node.is_variable() && !known.contains(&node.id());
    let nodes = loss.sorted_nodes();
    let Some(outside) = nodes.iter().find(is_outside) else { return Ok(()) };
    let shape = outside.dims().to_vec();
    let alike = parameters.iter().filter(|parameter| parameter.var.dims() == shape);
    let alike = alike.map(|parameter| parameter.name.clone()).collect();
    Err(CandleError::Outside { shape, alike })
}

/// The gradient of each parameter; none where it may lack one and does.
pub(crate) fn of_parameters(
    mut grads: GradStore,
    parameters: &[Parameter],
) -> Result<Vec<Option<Tensor>>, CandleError> {
    let found: Vec<_> =
        parameters.iter().map(|parameter| grads.remove(parameter.var.as_tensor())).collect();
    let lacks = |(parameter, found): &(&Parameter, &Option<Tensor>)| {
        found.is_none() && !parameter.may_lack_gradient
    };
    let names: Vec<String> = parameters
        .iter()
        .zip(&found)
        .filter(lacks)
        .map(|(parameter, _)| parameter.name.clone())
        .collect();
    if names.is_empty() { Ok(found) } else { Err(CandleError::NoGradient { names }) }
}

/// Refuses a part of a fused parameter whose gradient is zero in every element, where another
/// part's is not: its own way to the loss was cut.
pub(crate) fn check_parts(
    grads: &[Option<Tensor>],
    parameters: &[Parameter],
) -> Result<(), CandleError> {
    for (parameter, grad) in parameters.iter().zip(grads) {
        let Some(grad) = grad.as_ref().filter(|_| !parameter.may_lack_gradient) else { continue };
        let mut zero = None;
        let mut is_any_moved = false;
        for part in &parameter.parts {
            let rows = grad.narrow(0, part.rows.start, part.rows.len())?;
            let most = rows.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            is_any_moved |= most > 0.0;
            if most == 0.0 {
                zero.get_or_insert(part);
            }
        }
        if let Some(part) = zero.filter(|_| is_any_moved) {
            let (name, part) = (parameter.name.clone(), part.label.clone());
            return Err(CandleError::ZeroPart { name, part });
        }
    }
    Ok(())
}
