//! Matrix products of views into slices, each on its caller's thread.

use gemm::Parallelism;

/// A matrix inside a slice: rows, columns, and how far apart neighbours of each are.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix that is all of `data`.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// A row-major matrix whose rows begin `stride` apart.
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(fits(data.len(), rows, columns, stride), "a matrix of {rows}×{columns} in {} values", data.len());
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// Rows as columns.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

fn fits(len: usize, rows: usize, columns: usize, stride: usize) -> bool {
    rows == 0 || columns == 0 || (stride >= columns && (rows - 1) * stride + columns <= len)
}

/// `out = factor · a · b`, or with `accumulate` `out += factor · a · b`; rows of `out` begin `stride` apart.
pub fn product(a: View<'_>, b: View<'_>, out: &mut [f32], stride: usize, factor: f32, accumulate: bool) {
    let (rows, inner, columns) = (a.rows, a.columns, b.columns);
    assert!(b.rows == inner && fits(out.len(), rows, columns, stride), "a product that does not fit");
    // SAFETY: each view was compared with its slice when it was made, and `out` just now.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0f32,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_views() {
        let a: Vec<f32> = (0..8).map(|v| v as f32).collect();
        // [[0, 1, 2], [4, 5, 6]] and its product with its transpose.
        let view = View::strided(&a, 2, 3, 4);
        let mut out = vec![1.0; 5];
        product(view, view.t(), &mut out, 3, 2.0, true);
        assert_eq!(out, [11.0, 35.0, 1.0, 35.0, 155.0]);
        product(view, view.t(), &mut out, 3, 1.0, false);
        assert_eq!(out, [5.0, 17.0, 1.0, 17.0, 77.0]);
    }

    #[test]
    #[should_panic(expected = "a matrix of 3×3")]
    fn a_view_that_does_not_fit() {
        View::new(&[0.0; 8], 3, 3);
    }
}
