//! Times training steps: `cargo run --release -p training --example step -- unet 5`.

use std::io::Write;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    training::threads::configure();
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "unet".into());
    let steps: usize = args.next().map_or(Ok(5), |n| n.parse())?;
    let mut trial = training::speed::Trial::new(&name, 1)?.ok_or("no such network")?;
    if let Some(folder) = args.next() {
        trial.save(folder.as_ref())?;
    }
    let mut out = std::io::stdout();
    writeln!(out, "{name}: {} parameters, loss {}", trial.parameters(), trial.step()?)?;
    trial.step()?;
    let mut took = Vec::new();
    for _ in 0..steps {
        let began = std::time::Instant::now();
        trial.step()?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    writeln!(out, "median {:.1} ms, least {:.1}", took[took.len() / 2], took[0])?;
    Ok(())
}
