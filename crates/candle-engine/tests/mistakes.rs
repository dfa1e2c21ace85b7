//! Mistakes that candle makes silently, refused by name at the first pass.

mod small;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_engine::{Builder, Tokens};
use candle_nn::{Init, VarMap};
use small::{config, trainer};
use train::Wants;

const WIDTH: usize = 8;

/// The result of the first step of a model with these variables: a table, a matrix and a gain.
fn first_step(
    change: impl for<'a> Fn(Builder<'a>) -> Builder<'a> + Sync,
    loss: impl Fn(&Tokens, &[Tensor; 3]) -> Result<Tensor> + Sync,
) -> std::result::Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 1);
    let result = train::here::ranks(1, |world| {
        let device = device::Device::cpu(1)?;
        let vars = VarMap::new();
        let get = |shape: &[usize], name: &str| {
            vars.get(shape, name, Init::Const(0.1), DType::F32, &Device::Cpu).unwrap()
        };
        let parameters = [
            get(&[small::VOCAB, WIDTH], "embed.weight"),
            get(&[WIDTH, WIDTH], "fc.weight"),
            get(&[WIDTH], "norm.weight"),
        ];
        let loss = &loss;
        let closure = move |tokens: &Tokens| loss(tokens, &parameters);
        let engine = change(Builder::new(&vars)).build(&device, &config, closure)?;
        let mut trainer = trainer(&config, dir.path(), world, &device, engine)?;
        trainer.take_step(Wants::default()).map(|_| ())
    });
    result.map(|_| ()).map_err(|error| error.to_string())
}

fn embedded(tokens: &Tokens, [table, matrix, _]: &[Tensor; 3]) -> Result<Tensor> {
    table.index_select(&tokens.inputs.flatten_all()?, 0)?.matmul(matrix)
}

#[test]
fn a_parameter_without_a_gradient_is_named_with_what_drops_it() {
    let unused = |tokens: &Tokens, all: &[Tensor; 3]| embedded(tokens, all)?.sum_all();
    let refused = first_step(|builder| builder, unused).unwrap_err();
    assert!(refused.starts_with("a parameter got no gradient: `norm.weight`. "), "{refused}");
    for family in [
        "softmax_last_dim",
        "layer_norm",
        "rms_norm",
        "rope",
        "sdpa",
        "quantized",
        "detach",
        "argsort",
        "scatter",
    ] {
        assert!(refused.contains(family), "{family}: {refused}");
    }
    first_step(|builder| builder.may_lack_gradient("norm.*"), unused).unwrap();
    // On the way through a fused norm everything before it is lost.
    let fused = first_step(
        |builder| builder,
        |tokens, all| candle_nn::ops::rms_norm(&embedded(tokens, all)?, &all[2], 1e-5)?.sum_all(),
    );
    let fused = fused.unwrap_err();
    let names = "parameters got no gradient: `embed.weight`, `fc.weight`, `norm.weight`. ";
    assert!(fused.starts_with(names), "{fused}");
    first_step(
        |builder| builder,
        |tokens, all| {
            candle_nn::ops::rms_norm_slow(&embedded(tokens, all)?, &all[2], 1e-5)?.sqr()?.sum_all()
        },
    )
    .unwrap();
}

#[test]
fn a_variable_outside_the_map_is_refused() {
    let own = Var::zeros((WIDTH, WIDTH), DType::F32, &Device::Cpu).unwrap();
    let refused = first_step(
        |builder| builder,
        |tokens, all| {
            let x = embedded(tokens, all)?.matmul(own.as_tensor())?;
            x.broadcast_mul(&all[2])?.sum_all()
        },
    );
    let refused = refused.unwrap_err();
    assert!(refused.contains("a variable of shape [8, 8] that is not in the VarMap"), "{refused}");
    assert!(refused.contains("(parameters of that shape: `fc.weight`)"), "{refused}");
    // Read as a constant it is none.
    first_step(
        |builder| builder,
        |tokens, all| {
            let x = embedded(tokens, all)?.matmul(&own.as_detached_tensor())?;
            (embedded(tokens, all)? + x)?.broadcast_mul(&all[2])?.sum_all()
        },
    )
    .unwrap();
}

#[test]
fn a_closure_that_draws_random_numbers_is_refused() {
    let dropout = |tokens: &Tokens, all: &[Tensor; 3]| {
        let x = embedded(tokens, all)?.broadcast_mul(&all[2])?;
        candle_nn::ops::dropout(&x, 0.5)?.sum_all()
    };
    let refused = first_step(|builder| builder, dropout).unwrap_err();
    assert!(refused.contains("it draws random numbers (as dropout does)"), "{refused}");
}

#[test]
fn a_variable_that_comes_late_is_refused() {
    let late = std::sync::Mutex::new(None);
    let passes = std::sync::atomic::AtomicUsize::new(0);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.train.steps = 2;
    let result = train::here::ranks(1, |world| {
        let device = device::Device::cpu(1)?;
        let vars = VarMap::new();
        let get = |shape: &[usize], name: &str| {
            vars.get(shape, name, Init::Const(0.1), DType::F32, &Device::Cpu).unwrap()
        };
        let all = [
            get(&[small::VOCAB, WIDTH], "embed.weight"),
            get(&[WIDTH, WIDTH], "fc.weight"),
            get(&[WIDTH], "norm.weight"),
        ];
        let (late, passes) = (&late, &passes);
        let closure = move |tokens: &Tokens| {
            let x = embedded(tokens, &all)?.broadcast_mul(&all[2])?;
            // The first step does not read it.
            match passes.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 3 {
                true => x.sum_all(),
                false => {
                    let own = Var::ones((WIDTH, WIDTH), DType::F32, &Device::Cpu)?;
                    let sum = x.matmul(own.as_tensor())?.sum_all();
                    *late.lock().unwrap() = Some(own);
                    sum
                }
            }
        };
        let engine = Builder::new(&vars).build(&device, &config, closure)?;
        let mut trainer = trainer(&config, dir.path(), world, &device, engine)?;
        (0..2).try_for_each(|_| trainer.take_step(Wants::default()).map(|_| ()))
    });
    let refused = result.map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("or was not when the engine was built"), "{refused}");
}

#[test]
fn a_part_whose_way_is_cut_is_named() {
    let parts = [("top", WIDTH / 2), ("bottom", WIDTH / 2)];
    // Of the rows of the matrix the lower half goes through an operation without a backward pass.
    let cut = |tokens: &Tokens, [table, matrix, gain]: &[Tensor; 3]| {
        let x = table.index_select(&tokens.inputs.flatten_all()?, 0)?;
        let half = |at: usize| x.matmul(&matrix.narrow(0, at * WIDTH / 2, WIDTH / 2)?.t()?);
        let cut = candle_nn::ops::softmax_last_dim(&half(1)?)?;
        let all = Tensor::cat(&[half(0)?, cut], 1)?;
        all.broadcast_mul(gain)?.sqr()?.sum_all()
    };
    let refused = first_step(|builder| builder.parts("fc.weight", &parts), cut).unwrap_err();
    assert!(refused.starts_with("part `bottom` of `fc.weight` got a gradient of exact zeros"));
    assert!(refused.contains("softmax_last_dim"), "{refused}");
    first_step(|builder| builder.parts("fc.weight", &parts).may_lack_gradient("fc.*"), cut)
        .unwrap();
}

#[test]
fn a_loss_that_is_no_number_is_refused_with_its_shape() {
    let rows = |tokens: &Tokens, all: &[Tensor; 3]| embedded(tokens, all)?.sum(1);
    let refused = first_step(|builder| builder, rows).unwrap_err();
    assert!(refused.contains("a loss of shape [64], and of type F32"), "{refused}");
    assert!(refused.contains("use `sum_all`, or `candle_engine::cross_entropy`"), "{refused}");
    let count = |tokens: &Tokens, _: &[Tensor; 3]| tokens.inputs.sum_all();
    let refused = first_step(|builder| builder, count).unwrap_err();
    assert!(refused.contains("a loss of shape [], and of type U32"), "{refused}");
}
