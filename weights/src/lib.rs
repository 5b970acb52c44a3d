//! Domain core of Weightsmith: network layouts, vectorising, canonical form, standardisation, safetensors
//! and generator bundles. Pure: nothing here opens a file or a socket.

pub mod architecture;
mod assignment;
pub mod basic_resnet;
pub mod bundle;
pub mod canonical;
pub mod checkpoint;
pub mod closed_form;
pub mod convolution;
pub mod digest;
pub mod error;
pub mod layout;
pub mod lora;
pub mod manifest;
pub mod mobilenet;
pub mod novelty;
pub mod onnx;
pub mod part;
pub mod resnet;
pub mod spectrum;
pub mod standardise;
pub mod tensors;
pub mod vectorise;
pub mod vit;

pub use architecture::{Activation, Architecture};
pub use basic_resnet::Resnet;
pub use bundle::Bundle;
pub use error::{Error, Result};
pub use layout::{Layout, ParamSpec};
pub use lora::{Lora, LoraModule};
pub use manifest::Manifest;
pub use mobilenet::{InvertedResidual, MobilenetV3};
pub use part::Part;
pub use standardise::{Standardisation, StandardiseMode};
pub use vit::{Pool, Vit};
