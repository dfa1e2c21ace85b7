//! The model under test, with values going in and out as f64 vectors.

use std::cell::RefCell;

use device::{DType, Device, Tensor};
use layout::Role;
use model::{
    Architecture, Feed, Gradients, Inputs, MicroBatch, Model, NoHooks, Stash, State, Types,
    initialize,
};

use super::random::Random;

/// A model with its weights, gradients and router state.
pub struct Engine {
    pub model: Model,
    pub device: Device,
    pub weights: Tensor,
    pub gradients: Tensor,
    router_bias: Tensor,
    loads: Tensor,
    loss: Tensor,
    /// Experts of each token, of each layer with experts, in the last [`Engine::pass`].
    chosen: RefCell<Vec<Vec<Vec<u32>>>>,
}

impl Engine {
    /// A freshly initialized model.
    pub fn new(a: &Architecture, batch: MicroBatch, dtype: DType, seed: u64) -> Engine {
        let device = Device::cpu(1).unwrap();
        let types = Types { compute: dtype, weights: dtype };
        let model = Model::new(&device, a, batch, 1 << 12, types).unwrap();
        let len = model.flat().len;
        let weights = device.zeros(&[len], dtype).unwrap();
        initialize(&device.stream(), a, model.flat(), seed, &weights).unwrap();
        let experts = a.moe.as_ref().map_or(1, |moe| moe.experts);
        let routers = [a.moe_layers().max(1), experts];
        Engine {
            gradients: device.zeros(&[len], dtype).unwrap(),
            router_bias: device.zeros(&routers, dtype).unwrap(),
            loads: device.zeros(&routers, DType::U32).unwrap(),
            loss: device.zeros(&[1], DType::F64).unwrap(),
            chosen: RefCell::default(),
            weights,
            model,
            device,
        }
    }

    /// Moves gains away from one and biases away from zero, where mistakes would not show.
    pub fn unsettle(&self, random: &mut Random) {
        let (schema, flat) = (self.model.schema(), self.model.flat());
        for (index, tensor) in schema.tensors.iter().enumerate() {
            if tensor.role == Role::Vector {
                let vector = self.weights.flat(flat.range(index)).unwrap();
                let now = self.read(&vector);
                let moved: Vec<f64> = now.iter().map(|x| x + random.value(0.3)).collect();
                self.write(&vector, &moved);
            }
        }
    }

    /// One vector per tensor of the schema.
    pub fn per_tensor(&self, flat: &Tensor) -> Vec<Vec<f64>> {
        let layout = self.model.flat();
        let tensors = 0..self.model.schema().tensors.len();
        tensors.map(|index| self.read(&flat.flat(layout.range(index)).unwrap())).collect()
    }

    /// Forward and backward; returns the summed loss. Adds to the gradients when `accumulate`.
    pub fn pass(&self, inputs: &Inputs, accumulate: bool) -> f64 {
        let live = inputs.targets.iter().filter(|&&t| t != kernels::loss::IGNORE);
        let to = Gradients {
            flat: &self.gradients,
            onto: super::op::onto(accumulate),
            tokens: live.count() as f64,
            loss: &self.loss,
        };
        let loads = vec![0_u32; self.loads.len()];
        self.model.stream().copy_in(&self.loads, &loads).unwrap();
        let stash = self.model.forward(inputs, self.state(), &mut NoHooks).unwrap();
        *self.chosen.borrow_mut() = self.choices(&stash);
        self.model.backward(stash, self.state(), to, &mut NoHooks).unwrap();
        self.read(&self.loss)[0]
    }

    /// The summed loss alone.
    pub fn evaluate(&self, inputs: &Inputs) -> f64 {
        let stash = self.model.forward(inputs, self.state(), &mut NoHooks).unwrap();
        self.model.evaluate(&stash, self.state(), &self.loss, &mut NoHooks).unwrap();
        self.read(&self.loss)[0]
    }

    /// Tokens per expert of each layer with experts, in the last [`Engine::pass`].
    pub fn loads(&self) -> Vec<Vec<u32>> {
        let layers = self.model.architecture().moe_layers();
        let loads: Vec<u32> = self.model.stream().to_vec(&self.loads).unwrap();
        loads.chunks(self.loads.dim(1)).take(layers).map(<[u32]>::to_vec).collect()
    }

    /// Experts of each token, of each layer with experts, in the last [`Engine::pass`].
    pub fn chosen(&self) -> Vec<Vec<Vec<u32>>> {
        self.chosen.borrow().clone()
    }

    fn choices(&self, stash: &Stash) -> Vec<Vec<Vec<u32>>> {
        let a = self.model.architecture();
        let layers = (0..a.layers).filter(|&layer| a.feed(layer) == Feed::Experts);
        let of = |layer| {
            let chosen = self.model.chosen(stash, layer).unwrap();
            let experts: Vec<u32> = self.model.stream().to_vec(&chosen).unwrap();
            experts.chunks(chosen.dim(1)).map(<[u32]>::to_vec).collect()
        };
        layers.map(of).collect()
    }

    pub fn set_router_bias(&self, bias: &[Vec<f64>]) {
        if !bias.is_empty() {
            self.write(&self.router_bias, &bias.concat());
        }
    }

    pub fn read(&self, tensor: &Tensor) -> Vec<f64> {
        let stream = self.model.stream();
        match tensor.dtype() {
            DType::F64 => stream.to_vec(tensor).unwrap(),
            _ => stream.to_vec::<f32>(tensor).unwrap().into_iter().map(f64::from).collect(),
        }
    }

    fn write(&self, tensor: &Tensor, values: &[f64]) {
        let stream = self.model.stream();
        match tensor.dtype() {
            DType::F64 => stream.copy_in(tensor, values).unwrap(),
            _ => {
                let narrow: Vec<f32> = values.iter().map(|&x| x as f32).collect();
                stream.copy_in(tensor, &narrow).unwrap();
            }
        }
    }

    fn state(&self) -> State<'_> {
        State { weights: &self.weights, router_bias: &self.router_bias, loads: &self.loads }
    }
}
