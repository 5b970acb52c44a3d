//! Planes of several images as tiles of 4×4 side by side, in the lanes of a vector, and back.

use wide::f32x4;

use super::transforms::{LANES, Lanes, OUT, POINTS, both, column, input, output, output_gradient};
use super::{read, write};

/// Planes that are cut into tiles: a row of tiles of as many images as the lanes hold is one vector.
#[derive(Debug, Clone, Copy)]
pub struct Tiles {
    h: usize,
    w: usize,
}

/// Where the first value of a channel's tiles lies among the matrices of the products, and how far apart these are.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub at: usize,
    pub apart: usize,
}

/// Calls a function for as many tiles in a row as the planes have: a number that is known when this is compiled.
macro_rules! across {
    ($self:ident, $name:ident($($argument:expr),*)) => {
        match $self.w / OUT {
            1 => $self.$name::<1>($($argument),*),
            2 => $self.$name::<2>($($argument),*),
            4 => $self.$name::<4>($($argument),*),
            _ => $self.$name::<8>($($argument),*),
        }
    };
}

impl Tiles {
    /// Those of planes of `h` rows and `w` columns; none where rows of tiles do not fill a vector.
    pub fn new(h: usize, w: usize) -> Option<Self> {
        let fits = h > 0 && h.is_multiple_of(OUT) && matches!(w / OUT, 1 | 2 | 4 | 8) && w.is_multiple_of(OUT);
        fits.then_some(Self { h, w })
    }

    /// Values of a plane.
    pub fn plane(self) -> usize {
        self.h * self.w
    }

    /// Tiles of a plane.
    pub fn of_image(self) -> usize {
        self.plane() / (OUT * OUT)
    }

    /// Images whose tiles are side by side.
    pub fn group(self) -> usize {
        LANES * OUT / self.w
    }

    /// Transforms the tiles of a channel, with the values around them, of at most a group of images: `planes` begins with the
    /// first one's plane, and those of others lie `image` values further.
    pub fn input(self, planes: &[f32], image: usize, out: &mut [f32], place: Place) {
        across!(self, input_of(planes, image, out, place));
    }

    #[inline(always)]
    fn input_of<const T: usize>(self, planes: &[f32], image: usize, out: &mut [f32], place: Place) {
        let images = self.images(planes, image);
        // Rows of the tiles' six, transformed along themselves; the last two are the first of the tiles below.
        let mut rows = [[Lanes::ZERO; POINTS]; POINTS];
        rows[1] = self.across::<T>(planes, image, 0);
        for ty in 0..self.h / OUT {
            for (row, y) in rows.iter_mut().skip(2).zip(ty * OUT + 1..) {
                *row = if y < self.h { self.across::<T>(planes, image, y) } else { [Lanes::ZERO; POINTS] };
            }
            let place = place.row(ty, images * T);
            for q in 0..POINTS {
                place.write(q, input(column(&rows, q)), out);
            }
            let (above, below) = rows.split_at_mut(OUT);
            above[..2].copy_from_slice(below);
        }
    }

    /// A row of the planes, tile by tile with the value before and after, transformed.
    #[inline(always)]
    fn across<const T: usize>(self, planes: &[f32], image: usize, y: usize) -> [Lanes; POINTS] {
        let [a, b, c, d] = self.phases::<T>(planes, image, y);
        let (first, last) = (a.to_array(), d.to_array());
        let before = std::array::from_fn(|i| if i % T == 0 { 0.0 } else { last[i - 1] });
        let after = std::array::from_fn(|i| if i % T == T - 1 { 0.0 } else { first[i + 1] });
        input([Lanes::new(before), a, b, c, d, Lanes::new(after)])
    }

    /// A row of the planes: first, second, third and fourth value of each tile.
    #[inline(always)]
    fn phases<const T: usize>(self, planes: &[f32], image: usize, y: usize) -> [Lanes; OUT] {
        let tile = |i: usize| {
            let at = i / T * image + y * self.w + i % T * OUT;
            planes.get(at..).and_then(|rest| rest.first_chunk::<OUT>()).map_or(f32x4::ZERO, |tile| f32x4::new(*tile))
        };
        let half = |from: usize| f32x4::transpose(std::array::from_fn(|i| tile(from + i)));
        let (left, right) = (half(0), half(LANES / 2));
        std::array::from_fn(|k| {
            let (left, right) = (left[k].to_array(), right[k].to_array());
            Lanes::new(std::array::from_fn(|i| if i < OUT { left[i] } else { right[i - OUT] }))
        })
    }

    /// Transforms the gradients of a channel's output, as [`Self::input`] does inputs.
    pub fn output_gradient(self, planes: &[f32], image: usize, out: &mut [f32], place: Place) {
        across!(self, output_gradient_of(planes, image, out, place));
    }

    #[inline(always)]
    fn output_gradient_of<const T: usize>(self, planes: &[f32], image: usize, out: &mut [f32], place: Place) {
        let images = self.images(planes, image);
        for ty in 0..self.h / OUT {
            let row = |r| self.phases::<T>(planes, image, ty * OUT + r);
            let place = place.row(ty, images * T);
            both(row, (output_gradient, output_gradient), |q, column| place.write(q, column, out));
        }
    }

    /// Images of a group that begin in `planes`.
    fn images(self, planes: &[f32], image: usize) -> usize {
        planes.len().div_ceil(image).min(self.group())
    }

    /// Makes a channel's outputs from what the products gave, plus `bias` and what lies in `residual` where `planes` begins.
    pub fn output(self, products: &[f32], place: Place, add: (f32, Option<&[f32]>), planes: &mut [f32], image: usize) {
        across!(self, output_of(products, place, add, planes, image));
    }

    #[inline(always)]
    fn output_of<const T: usize>(
        self,
        products: &[f32],
        place: Place,
        (bias, residual): (f32, Option<&[f32]>),
        planes: &mut [f32],
        image: usize,
    ) {
        let images = self.images(planes, image);
        for ty in 0..self.h / OUT {
            // Columns first, so that what comes last are whole rows.
            let place = place.row(ty, images * T);
            let mut rows = [[Lanes::ZERO; POINTS]; OUT];
            for q in 0..POINTS {
                let values = output(place.column(q, products));
                rows.iter_mut().zip(&values).for_each(|(row, value)| row[q] = *value);
            }
            for (r, row) in rows.iter().enumerate() {
                let values = output(*row);
                let values: [_; OUT] = std::array::from_fn(|k| (values[k] + bias).to_array());
                let quarter = |k: usize, from: usize| f32x4::new(std::array::from_fn(|i| values[k][from + i]));
                let half = |from: usize| f32x4::transpose(std::array::from_fn(|k| quarter(k, from)));
                let tiles = [half(0), half(LANES / 2)];
                for (i, tile) in tiles.as_flattened().iter().enumerate().take(images * T) {
                    let at = i / T * image + (ty * OUT + r) * self.w + i % T * OUT;
                    let more =
                        residual.and_then(|r| r[at..].first_chunk::<OUT>()).map_or(f32x4::ZERO, |r| f32x4::new(*r));
                    write4(*tile + more, &mut planes[at..]);
                }
            }
        }
    }
}

fn write4(values: f32x4, to: &mut [f32]) {
    if let Some(to) = to.first_chunk_mut::<OUT>() {
        *to = values.to_array();
    }
}

/// Where a row of tiles lies among the matrices of the products.
#[derive(Clone, Copy)]
struct Row {
    at: usize,
    apart: usize,
    tiles: usize,
}

impl Place {
    /// The `ty`-th row of so many tiles.
    fn row(self, ty: usize, tiles: usize) -> Row {
        Row { at: self.at + ty * tiles, apart: self.apart, tiles }
    }
}

impl Row {
    /// Writes a column of what the tiles became.
    #[inline(always)]
    fn write(self, q: usize, column: [Lanes; POINTS], out: &mut [f32]) {
        for (p, values) in column.iter().enumerate() {
            write(*values, &mut out[self.at + (p * POINTS + q) * self.apart..][..self.tiles]);
        }
    }

    /// A column of what the products gave for the tiles.
    #[inline(always)]
    fn column(self, q: usize, products: &[f32]) -> [Lanes; POINTS] {
        std::array::from_fn(|p| read(&products[self.at + (p * POINTS + q) * self.apart..][..self.tiles]))
    }
}
