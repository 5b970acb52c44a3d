//! Matrix products of slices.

use gemm::Parallelism;

/// A matrix inside a slice: rows, columns, and whether it is stored transposed.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a>(pub(crate) &'a [f32], pub(crate) usize, pub(crate) usize, pub(crate) bool);

impl Matrix<'_> {
    /// (row stride, column stride).
    fn strides(&self) -> (isize, isize) {
        if self.3 { (1, self.1 as isize) } else { (self.2 as isize, 1) }
    }
}

/// out = a · b, or out += a · b; `out` is row-major.
pub(crate) fn product(a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], accumulate: bool) {
    let (rows, inner, columns) = (a.1, a.2, b.2);
    assert!(a.0.len() == rows * inner && b.0.len() == b.1 * columns && b.1 == inner && out.len() == rows * columns);
    let ((ars, acs), (brs, bcs)) = (a.strides(), b.strides());
    // SAFETY: the lengths were just compared with the sizes, and the strides address rows × columns of each.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            columns as isize,
            accumulate,
            a.0.as_ptr(),
            acs,
            ars,
            b.0.as_ptr(),
            bcs,
            brs,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
