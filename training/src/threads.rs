//! Threads of tensor operations. candle splits element-wise operations over a pool with a spinning barrier and one
//! lock for all callers, which costs more than it gives on few cores and stalls when the machine is busy (measured
//! here: 2–5 times slower beside other work). Training is parallel above the operations instead: groups of zoo models,
//! shards of a batch.

/// Keeps each tensor operation on its caller's thread, and gives rayon all cores. Call it first thing in `main`,
/// before any other thread exists. `CANDLE_NUM_THREADS` and `RAYON_NUM_THREADS` win when they are set.
pub fn configure() {
    if std::env::var_os("CANDLE_NUM_THREADS").is_some() || std::env::var_os("RAYON_NUM_THREADS").is_some() {
        return;
    }
    // SAFETY: the caller promises that no other thread runs yet.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        // candle reads this one for its matrix products.
        std::env::set_var("RAYON_NUM_THREADS", "1");
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // It fails only when the pool exists already, which is then what the caller wanted.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(cores).build_global();
}
