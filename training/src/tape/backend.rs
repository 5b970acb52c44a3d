//! The operations of networks on a [`Tape`].

use candle_core::{Device, Tensor};
use kernels::{Conv, View, product};
use weights::convolution::{Convolution, PARAMS};

use super::attention::Attention;
use super::norm::{self, Groups};
use super::shapes::{Repeated, concat, part, upsample2, upsample2_backward};
use super::{Tape, Traced, read, read_all, silu};
use crate::backend::{Backend, Eager, Layers, Unary, Weights, resolve};
use crate::error::{Error, Result};
use crate::params::{Init, Params};

/// What `f` does in candle; it makes no parameters.
fn eager<R>(f: impl FnOnce(&mut Eager<'_>) -> Result<R>) -> Result<R> {
    f(&mut Eager::new(&mut Params::new(0, &Device::Cpu)))
}

fn mismatch(what: &str, shapes: &[&Traced]) -> Error {
    let shapes: Vec<&[usize]> = shapes.iter().map(|t| t.shape.as_slice()).collect();
    Error::Config(format!("{what} does not fit {shapes:?}"))
}

fn dims4(x: &Traced) -> Result<(usize, usize, usize, usize)> {
    match x.shape.as_slice() {
        &[n, c, h, w] => Ok((n, c, h, w)),
        _ => Err(mismatch("an image", &[x])),
    }
}

/// Rows and columns of a linear map's input, and the shape of its output.
fn linear_sizes(x: &Traced, weight: &Traced) -> Option<(usize, usize, Vec<usize>)> {
    let (&last, lead) = x.shape.split_last()?;
    let &[o, i] = weight.shape.as_slice() else { return None };
    let shape = lead.iter().copied().chain([o]).collect();
    (i == last).then_some((lead.iter().product(), o, shape))
}

impl Tape<'_> {
    /// x Wᵀ, plus bias and residual where there are any.
    fn map(&mut self, x: &Traced, weight: &Traced, bias: Option<&Traced>, residual: Option<&Traced>) -> Result<Traced> {
        let fits = |shape: &[usize], o: usize| {
            bias.is_none_or(|b| b.shape == [o]) && residual.is_none_or(|r| r.shape == shape)
        };
        let (rows, o, shape) = linear_sizes(x, weight)
            .filter(|(_, o, shape)| fits(shape, *o))
            .ok_or_else(|| mismatch("a linear map", &[x, weight]))?;
        let i = weight.dim(1);
        let mut y = match residual {
            Some(residual) => read([&residual.values], |[r]| self.pool.copy(r))?,
            None => self.pool.take(rows * o),
        };
        if let Some(bias) = bias {
            read([&bias.values], |[bias]| {
                for row in y.chunks_exact_mut(o) {
                    match residual {
                        Some(_) => row.iter_mut().zip(bias).for_each(|(y, b)| *y += b),
                        None => row.copy_from_slice(bias),
                    }
                }
            })?;
        }
        let accumulate = bias.is_some() || residual.is_some();
        read([&x.values, &weight.values], |[x, w]| {
            product(View::new(x, rows, i), View::new(w, o, i).t(), &mut y, o, 1.0, accumulate);
        })?;
        let inputs: Vec<&Traced> = [Some(x), Some(weight), bias, residual].into_iter().flatten().collect();
        let nodes = [Some(x), Some(weight), bias, residual].map(|t| t.and_then(|t| t.node));
        let (x, weight) = (x.values.clone(), weight.values.clone());
        Ok(self.record(&inputs, y, &shape, move |grad, grads| {
            let [xn, wn, bn, rn] = nodes;
            read([&x, &weight], |[x, w]| {
                let (g, w, x) = (View::new(&grad, rows, o), View::new(w, o, i), View::new(x, rows, i));
                grads.write(xn, rows * i, |dx, fresh| product(g, w, dx, i, 1.0, !fresh));
                grads.write(wn, o * i, |dw, fresh| product(g.t(), x, dw, i, 1.0, !fresh));
                grads.write(bn, o, |db, fresh| {
                    if fresh {
                        db.fill(0.0);
                    }
                    for row in grad.chunks_exact(o) {
                        db.iter_mut().zip(row).for_each(|(b, g)| *b += g);
                    }
                });
            })?;
            grads.add(rn, grad);
            Ok(())
        }))
    }

    fn convolve(
        &mut self,
        x: &Traced,
        [weight, bias]: [&Traced; 2],
        [stride, pad]: [usize; 2],
        residual: Option<&Traced>,
    ) -> Result<Traced> {
        let (n, c, h, w) = dims4(x)?;
        let (o, wc, k, kw) = dims4(weight)?;
        let conv = Conv { c, h, w, o, k, stride, pad };
        let sides = conv.out().filter(|_| wc == c && kw == k && bias.shape == [o]);
        let (oh, ow) = sides.ok_or_else(|| mismatch("a convolution", &[x, weight, bias]))?;
        let shape = [n, o, oh, ow];
        if residual.is_some_and(|r| r.shape != shape) {
            return Err(mismatch("a convolution's residual", &[x, weight]));
        }
        let y = read([&x.values, &weight.values, &bias.values], |[x, w, b]| match residual {
            Some(residual) => read([&residual.values], |[r]| conv.forward(x, w, b, Some(r), &self.pool)),
            None => Ok(conv.forward(x, w, b, None, &self.pool)),
        })??;
        let inputs: Vec<&Traced> = [Some(x), Some(weight), Some(bias), residual].into_iter().flatten().collect();
        let nodes = [Some(x), Some(weight), Some(bias), residual].map(|t| t.and_then(|t| t.node));
        let (x, weight) = (x.values.clone(), weight.values.clone());
        Ok(self.record(&inputs, y, &shape, move |grad, grads| {
            let ([xn, wn, bn, rn], pool) = (nodes, grads.pool.clone());
            read([&x, &weight], |[x, w]| {
                if xn.is_some() {
                    grads.add(xn, conv.input_gradient(w, &grad, &pool));
                }
                let (dw, db) = conv.parameter_gradients(x, &grad, &pool);
                grads.add(wn, dw);
                grads.add(bn, db);
            })?;
            grads.add(rn, grad);
            Ok(())
        }))
    }
}

impl Layers for Tape<'_> {
    type T = Traced;

    fn linear(&mut self, x: &Traced, weight: &Traced, bias: &Traced) -> Result<Traced> {
        self.map(x, weight, Some(bias), None)
    }

    fn conv2d(&mut self, x: &Traced, weight: &Traced, bias: &Traced, stride: usize, pad: usize) -> Result<Traced> {
        self.convolve(x, [weight, bias], [stride, pad], None)
    }

    fn max_pool2(&mut self, x: &Traced) -> Result<Traced> {
        self.candle(&[x], |x| eager(|e| e.max_pool2(&x[0])))
    }

    fn unary(&mut self, x: &Traced, f: Unary) -> Result<Traced> {
        if f != Unary::Silu {
            return self.candle(&[x], move |x| eager(|e| e.unary(&x[0], f)));
        }
        let y = read([&x.values], |[x]| silu::forward(x, &self.pool))?;
        let (node, value) = (x.node, x.values.clone());
        Ok(self.record(&[x], y, &x.shape, move |mut grad, grads| {
            read([&value], |[x]| silu::backward(x, &mut grad))?;
            grads.add(node, grad);
            Ok(())
        }))
    }

    fn conv_norm(&mut self, x: &Traced, params: &[Traced; PARAMS], c: &Convolution) -> Result<Traced> {
        let c = c.clone();
        let inputs: Vec<&Traced> = std::iter::once(x).chain(params).collect();
        self.candle(&inputs, move |t| {
            let params = std::array::from_fn(|i| t[i + 1].clone());
            eager(|e| e.conv_norm(&t[0], &params, &c))
        })
    }

    fn squeeze_excite(&mut self, x: &Traced, params: &[Traced; 4]) -> Result<Traced> {
        let inputs: Vec<&Traced> = std::iter::once(x).chain(params).collect();
        self.candle(&inputs, |t| {
            let params = std::array::from_fn(|i| t[i + 1].clone());
            eager(|e| e.squeeze_excite(&t[0], &params))
        })
    }

    fn tokens(&mut self, x: &Traced) -> Result<Traced> {
        self.candle(&[x], |t| eager(|e| e.tokens(&t[0])))
    }

    fn prepend(&mut self, x: &Traced, token: &Traced) -> Result<Traced> {
        self.candle(&[x, token], |t| eager(|e| e.prepend(&t[0], &t[1])))
    }

    fn sum_each(&mut self, x: &Traced, y: &Traced) -> Result<Traced> {
        self.add(x, y)
    }

    fn layer_norm(&mut self, x: &Traced, scale: &Traced, shift: &Traced) -> Result<Traced> {
        self.candle(&[x, scale, shift], |t| eager(|e| e.layer_norm(&t[0], &t[1], &t[2])))
    }

    fn attention(&mut self, x: &Traced, heads: usize, width: usize) -> Result<Traced> {
        self.candle(&[x], move |t| eager(|e| e.attention(&t[0], heads, width)))
    }

    fn first_token(&mut self, x: &Traced) -> Result<Traced> {
        self.candle(&[x], |t| eager(|e| e.first_token(&t[0])))
    }

    fn mean_tokens(&mut self, x: &Traced) -> Result<Traced> {
        self.candle(&[x], |t| eager(|e| e.mean_tokens(&t[0])))
    }

    fn standardise(&mut self, x: &Traced, mean: &[f32], std: &[f32]) -> Result<Traced> {
        let (mean, std) = (mean.to_vec(), std.to_vec());
        self.candle(&[x], move |t| eager(|e| e.standardise(&t[0], &mean, &std)))
    }

    fn sum(&mut self, a: &Traced, b: &Traced) -> Result<Traced> {
        self.add(a, b)
    }

    fn shrink(&mut self, x: &Traced, more: usize) -> Result<Traced> {
        self.candle(&[x], move |t| eager(|e| e.shrink(&t[0], more)))
    }

    fn mean_pool(&mut self, x: &Traced) -> Result<Traced> {
        self.candle(&[x], |t| eager(|e| e.mean_pool(&t[0])))
    }

    fn flatten(&mut self, x: &Traced) -> Result<Traced> {
        self.reshape(x, &[0, -1])
    }
}

impl Backend for Tape<'_> {
    fn param(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Traced> {
        if let Some(leaf) = self.leaves.get(name) {
            return Ok(leaf.clone());
        }
        let value = self.params.get_or_init(name, shape, init)?;
        let leaf = self.input(&value)?;
        self.leaves.insert(name.to_owned(), leaf.clone());
        Ok(leaf)
    }

    fn constant(&mut self, data: &[f32], shape: &[usize]) -> Result<Traced> {
        self.constant_input(&Tensor::from_slice(data, shape, &Device::Cpu)?)
    }

    fn project(&mut self, x: &Traced, weight: &Traced) -> Result<Traced> {
        self.map(x, weight, None, None)
    }

    fn linear_add(&mut self, x: &Traced, [weight, bias]: [&Traced; 2], residual: &Traced) -> Result<Traced> {
        self.map(x, weight, Some(bias), Some(residual))
    }

    fn conv2d_add(&mut self, x: &Traced, weights: [&Traced; 2], pad: usize, residual: &Traced) -> Result<Traced> {
        self.convolve(x, weights, [1, pad], Some(residual))
    }

    fn matmul(&mut self, a: &Traced, b: &Traced) -> Result<Traced> {
        self.candle(&[a, b], |t| eager(|e| e.matmul(&t[0], &t[1])))
    }

    fn add(&mut self, a: &Traced, b: &Traced) -> Result<Traced> {
        let (a, b) = if a.count() < b.count() { (b, a) } else { (a, b) };
        let Some(repeated) = Repeated::new(&a.shape, &b.shape) else {
            return self.candle(&[a, b], |t| eager(|e| e.add(&t[0], &t[1])));
        };
        let y = read([&a.values, &b.values], |[a, b]| {
            if repeated.repeats > 1 {
                return repeated.sum(a, b, &self.pool);
            }
            let mut y = self.pool.take(a.len());
            y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = a + b);
            y
        })?;
        let (an, bn) = (a.node, b.node);
        Ok(self.record(&[a, b], y, &a.shape, move |grad, grads| {
            if bn.is_some() && repeated.repeats == 1 {
                grads.add_copy(bn, &grad);
            } else if bn.is_some() {
                let own = repeated.gradient(&grad, &grads.pool);
                grads.add(bn, own);
            }
            grads.add(an, grad);
            Ok(())
        }))
    }

    fn sub(&mut self, a: &Traced, b: &Traced) -> Result<Traced> {
        self.candle(&[a, b], |t| eager(|e| e.sub(&t[0], &t[1])))
    }

    fn mul(&mut self, a: &Traced, b: &Traced) -> Result<Traced> {
        self.candle(&[a, b], |t| eager(|e| e.mul(&t[0], &t[1])))
    }

    fn div(&mut self, a: &Traced, b: &Traced) -> Result<Traced> {
        self.candle(&[a, b], |t| eager(|e| e.div(&t[0], &t[1])))
    }

    fn affine(&mut self, x: &Traced, scale: f64, shift: f64) -> Result<Traced> {
        self.candle(&[x], move |t| eager(|e| e.affine(&t[0], scale, shift)))
    }

    fn softmax(&mut self, x: &Traced) -> Result<Traced> {
        self.candle(&[x], |t| eager(|e| e.softmax(&t[0])))
    }

    fn mean_last(&mut self, x: &Traced) -> Result<Traced> {
        self.candle(&[x], |t| eager(|e| e.mean_last(&t[0])))
    }

    fn layer_norm_last(&mut self, x: &Traced, w: Weights<'_, Traced>) -> Result<Traced> {
        let d = x.shape.last().copied().unwrap_or_default();
        if d == 0 || w.scale.shape != [d] || w.shift.shape != [d] {
            return Err(mismatch("a layer normalisation", &[x, w.scale, w.shift]));
        }
        let (y, rows) =
            read([&x.values, &w.scale.values, &w.shift.values], |[x, s, t]| norm::layer(x, s, t, &self.pool))?;
        let nodes = [x.node, w.scale.node, w.shift.node];
        let (value, scale) = (x.values.clone(), w.scale.values.clone());
        Ok(self.record(&[x, w.scale, w.shift], y, &x.shape, move |mut grad, grads| {
            let pool = grads.pool.clone();
            let (s, t) = read([&value, &scale], |[x, scale]| norm::layer_backward(x, scale, &rows, &mut grad, &pool))?;
            grads.add(nodes[1], s);
            grads.add(nodes[2], t);
            grads.add(nodes[0], grad);
            Ok(())
        }))
    }

    fn group_norm(
        &mut self,
        x: &Traced,
        groups: usize,
        [c, h, width]: [usize; 3],
        w: Weights<'_, Traced>,
        f: Unary,
    ) -> Result<Traced> {
        if f != Unary::Silu {
            return self.candle(&[x, w.scale, w.shift], move |t| {
                eager(|e| e.group_norm(&t[0], groups, [c, h, width], Weights { scale: &t[1], shift: &t[2] }, f))
            });
        }
        let rest = x.shape.get(1..).is_some_and(|rest| rest == [c, h, width]);
        let fits = |t: &Traced| t.shape == [c, 1, 1];
        if !rest || groups == 0 || c % groups != 0 || c * h * width == 0 || !fits(w.scale) || !fits(w.shift) {
            return Err(mismatch("a group normalisation", &[x, w.scale, w.shift]));
        }
        let sizes = Groups { groups, c, positions: h * width };
        let (y, all) =
            read([&x.values, &w.scale.values, &w.shift.values], |[x, s, t]| sizes.forward(x, s, t, &self.pool))?;
        let nodes = [x.node, w.scale.node, w.shift.node];
        let values = [x, w.scale, w.shift].map(|t| t.values.clone());
        Ok(self.record(&[x, w.scale, w.shift], y, &x.shape, move |mut grad, grads| {
            let pool = grads.pool.clone();
            let (s, t) = read(values.each_ref(), |[x, s, t]| sizes.backward(x, (s, t), &all, &mut grad, &pool))?;
            grads.add(nodes[1], s);
            grads.add(nodes[2], t);
            grads.add(nodes[0], grad);
            Ok(())
        }))
    }

    fn attend(
        &mut self,
        qkv: [&Traced; 3],
        [queries, keys, width, heads]: [usize; 4],
        presence: Option<&Traced>,
    ) -> Result<Traced> {
        let n = qkv[0].dim(0);
        let fits = |t: &Traced, tokens: usize| t.shape == [n, tokens, width];
        // Who is present is data: also where it comes with a condition that has a gradient, it has none.
        let there = presence.is_none_or(|p| p.shape == [n, keys]);
        if !fits(qkv[0], queries) || !fits(qkv[1], keys) || !fits(qkv[2], keys) || width % heads != 0 || !there {
            return Err(mismatch("an attention", &qkv));
        }
        let sizes = Attention { queries, keys, width, heads };
        let values = qkv.map(|t| t.values.clone());
        let (y, shares) = read(values.each_ref(), |qkv| match presence {
            Some(presence) => read([&presence.values], |[p]| sizes.forward(qkv, Some(p), &self.pool)),
            None => Ok(sizes.forward(qkv, None, &self.pool)),
        })??;
        let nodes = qkv.map(|t| t.node);
        Ok(self.record(&qkv, y, &[n, queries, width], move |grad, grads| {
            let pool = grads.pool.clone();
            let all = read(values.each_ref(), |qkv| sizes.backward(qkv, &shares, &grad, &pool))?;
            for (node, grad) in nodes.into_iter().zip(all) {
                grads.add(node, grad);
            }
            Ok(())
        }))
    }

    fn reshape(&mut self, x: &Traced, shape: &[i64]) -> Result<Traced> {
        // The same values in the same order: no operation at all.
        Ok(Traced { shape: resolve(&x.shape, shape)?, ..x.clone() })
    }

    fn permute(&mut self, x: &Traced, order: &[usize]) -> Result<Traced> {
        let order = order.to_vec();
        self.candle(&[x], move |t| eager(|e| e.permute(&t[0], &order)))
    }

    fn slice_last(&mut self, x: &Traced, start: usize, length: usize) -> Result<Traced> {
        self.candle(&[x], move |t| eager(|e| e.slice_last(&t[0], start, length)))
    }

    fn concat(&mut self, parts: &[&Traced], axis: usize) -> Result<Traced> {
        let Some((first, others)) = parts.split_first() else {
            return Err(Error::Config("nothing to join".into()));
        };
        let mut shape = first.shape.clone();
        let same = |t: &&Traced| {
            let dims = &t.shape;
            dims.len() == shape.len() && dims.iter().zip(&shape).enumerate().all(|(i, (a, b))| i == axis || a == b)
        };
        if axis >= shape.len() || !others.iter().all(same) {
            return Err(mismatch("joining", parts));
        }
        let sizes: Vec<usize> = parts.iter().map(|t| t.shape[axis..].iter().product()).collect();
        shape[axis] = parts.iter().map(|t| t.shape[axis]).sum();
        let values: Vec<_> = parts.iter().map(|t| &t.values).collect();
        let y = read_all(&values, |parts| concat(parts, &sizes, &self.pool))?;
        let nodes: Vec<Option<usize>> = parts.iter().map(|t| t.node).collect();
        Ok(self.record(parts, y, &shape, move |grad, grads| {
            let (row, mut start) = (sizes.iter().sum(), 0);
            for (node, size) in nodes.into_iter().zip(sizes) {
                if node.is_some() {
                    let own = part(&grad, row, start, size, &grads.pool);
                    grads.add(node, own);
                }
                start += size;
            }
            Ok(())
        }))
    }

    fn upsample2(&mut self, x: &Traced) -> Result<Traced> {
        let (n, c, h, w) = dims4(x)?;
        let y = read([&x.values], |[x]| upsample2(x, w, &self.pool))?;
        let node = x.node;
        Ok(self.record(&[x], y, &[n, c, 2 * h, 2 * w], move |grad, grads| {
            let own = upsample2_backward(&grad, w, &grads.pool);
            grads.add(node, own);
            Ok(())
        }))
    }

    fn expand_first(&mut self, x: &Traced, rank: usize, like: &Traced) -> Result<Traced> {
        self.candle(&[x, like], move |t| eager(|e| e.expand_first(&t[0], rank, &t[1])))
    }
}
