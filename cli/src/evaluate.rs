//! `weightsmith evaluate`.

use std::path::PathBuf;

use inference::Forward;
use weights::{Architecture, tensors};

use crate::context::{RuntimeArgs, labels, say};
use crate::error::{Error, Result};

/// Evaluate weights files on labelled data.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith evaluate out/sample-0.safetensors --data digits")]
pub struct Args {
    /// Weights files (safetensors) that name their architecture in their metadata.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Labelled data: `digits`, `idx:DIR`, `folder:DIR`, `npz:FILE` or `zip:FILE`.
    #[arg(long)]
    data: String,
    /// Classes in the order of the head's rows; without it those of the file's metadata.
    #[arg(long, value_delimiter = ',')]
    classes: Vec<String>,
    /// The architecture as JSON, for files that do not name it, such as
    /// '{"kind":"mlp","inputs":64,"hidden":[32],"classes":5}'.
    #[arg(long)]
    architecture: Option<String>,
    /// Print one JSON line a file.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let runtime = args.runtime.open()?;
    let data = datasets::load_source(&args.data)?;
    for file in &args.files {
        let bytes = std::fs::read(file).map_err(Error::io(file))?;
        let result = evaluate(&args, &runtime, &data, &bytes);
        let result = result.map_err(|e| Error::input(e.code(), format!("{}: {e}", file.display())))?;
        if args.json {
            let line = serde_json::json!({ "file": file, "accuracy": result.accuracy, "loss": result.loss,
                "examples": result.examples });
            say(&line.to_string());
        } else {
            say(&format!(
                "{}: accuracy {:.2} %, loss {:.4}, {} examples",
                file.display(),
                100.0 * result.accuracy,
                result.loss,
                result.examples
            ));
        }
    }
    Ok(())
}

fn evaluate(
    args: &Args,
    runtime: &inference::Runtime,
    data: &datasets::Dataset,
    bytes: &[u8],
) -> Result<inference::Evaluation> {
    let metadata = tensors::metadata(bytes)?;
    let config = args.architecture.as_ref().or_else(|| metadata.get("architecture_config"));
    let config = config.ok_or_else(|| {
        Error::input("architecture_unknown", "the file does not name its architecture; give --architecture")
    })?;
    let architecture: Architecture = serde_json::from_str(config)
        .map_err(|e| Error::input("architecture_invalid", format!("the architecture cannot be read: {e}")))?;
    let graph = training::export::forward(&architecture)?;
    let layout = architecture.layout();
    let theta = tensors::from_safetensors(bytes, &layout)?;
    let mut classes = args.classes.clone();
    if let (true, Some(text)) = (classes.is_empty(), metadata.get("classes")) {
        classes = serde_json::from_str(text)
            .map_err(|e| Error::input("classes_invalid", format!("the file's classes cannot be read: {e}")))?;
    }
    let data = data.select_classes(&labels(data, &classes)?)?;
    if data.classes() != architecture.classes() {
        let text = format!(
            "the network has {} classes, the data {}; name them in order with --classes",
            architecture.classes(),
            data.classes()
        );
        return Err(Error::input("classes_mismatch", text));
    }
    let forward = Forward::from_onnx(runtime, &graph, &layout, &architecture.input_shape())?;
    Ok(forward.evaluate(&theta, &data)?)
}
