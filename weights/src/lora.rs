//! Low-rank adapters (Hu et al. 2022) with a classifier, as Python's `peft` names and reads them: what is generated for
//! a described task (paper 4.3).

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::digest::sha256;
use crate::layout::Layout;

/// What `peft` puts before the names of a model's modules.
pub const PREFIX: &str = "base_model.model";
/// Name of the file with an adapter's settings.
pub const CONFIG: &str = "adapter_config.json";
/// Name of the file with an adapter's values.
pub const FILE: &str = "adapter_model.safetensors";

/// A linear module of the base model that gets an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraModule {
    /// Its name in the base model, such as `bert.encoder.layer.4.attention.self.query`.
    pub name: String,
    /// Values that it takes.
    pub inputs: usize,
    /// Values that it gives.
    pub outputs: usize,
}

/// LoRA of some modules of a base model, and a classifier on what it gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// The base model, as `peft` is to find it: a directory or a name of a hub.
    pub base: String,
    /// Rank r of an adapter.
    pub rank: usize,
    /// Adapters are scaled by alpha / rank.
    pub alpha: usize,
    /// Last parts of the modules' names.
    pub targets: Vec<String>,
    /// Numbers of the blocks that are adapted; empty: all.
    #[serde(default)]
    pub layers: Vec<usize>,
    /// The modules.
    pub modules: Vec<LoraModule>,
    /// Values that the classifier takes.
    pub hidden: usize,
    /// Number of classes.
    pub classes: usize,
}

impl Lora {
    /// A name that says rank, alpha and classes, and tells adapters of other modules or another base apart.
    pub fn name(&self) -> String {
        let all = serde_json::to_vec(self).unwrap_or_default();
        let digest = &sha256(&all)["sha256:".len()..][..8];
        format!("lora-r{}-a{}-{}-{digest}", self.rank, self.alpha, self.classes)
    }

    /// What is wrong with it, if something is.
    pub fn wrong(&self) -> Option<&'static str> {
        let named = |m: &LoraModule| self.targets.iter().any(|t| m.name.rsplit('.').next() == Some(t));
        let twice = |(i, m): (usize, &LoraModule)| self.modules[..i].iter().any(|other| other.name == m.name);
        match () {
            () if self.modules.is_empty() => Some("an adapter needs at least one module"),
            () if !self.modules.iter().all(named) => Some("each module's name must end with one of the targets"),
            () if self.modules.iter().enumerate().any(twice) => Some("no module may be named twice"),
            () => None,
        }
    }

    /// All its sizes.
    pub fn sizes(&self) -> Vec<usize> {
        let modules = self.modules.iter().flat_map(|m| [m.inputs, m.outputs]);
        [self.rank, self.alpha, self.hidden].into_iter().chain(modules).collect()
    }

    /// Names, shapes and order of the values: A `[rank, inputs]` and B `[outputs, rank]` of each module, then the
    /// classifier.
    pub fn layout(&self) -> Layout {
        let module = |m: &LoraModule| {
            let name = |part: &str| format!("{PREFIX}.{}.lora_{part}.weight", m.name);
            [(name("A"), vec![self.rank, m.inputs]), (name("B"), vec![m.outputs, self.rank])]
        };
        let classifier = [
            (format!("{PREFIX}.classifier.weight"), vec![self.classes, self.hidden]),
            (format!("{PREFIX}.classifier.bias"), vec![self.classes]),
        ];
        Layout::new(self.modules.iter().flat_map(module).chain(classifier))
    }

    /// `adapter_config.json`, as `peft` reads it.
    pub fn config(&self) -> Value {
        let layers = (!self.layers.is_empty()).then_some(&self.layers);
        json!({
            "peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": self.base, "r": self.rank,
            "lora_alpha": self.alpha, "lora_dropout": 0.0, "target_modules": self.targets,
            "modules_to_save": ["classifier"], "layers_to_transform": layers, "bias": "none",
            "fan_in_fan_out": false, "inference_mode": true, "num_classes": self.classes,
        })
    }

    /// The text of [`CONFIG`].
    pub fn config_file(&self) -> String {
        format!("{:#}\n", self.config())
    }

    /// A tar of the directory that `peft` loads: its settings, and `adapter` (safetensors of the layout). Equal adapters
    /// give equal bytes.
    ///
    /// # Errors
    /// As writing to memory: none.
    pub fn directory(&self, adapter: &[u8]) -> std::io::Result<Vec<u8>> {
        let config = self.config_file();
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in [(CONFIG, config.as_bytes()), (FILE, adapter)] {
            crate::bundle::append(&mut tar, name, bytes)?;
        }
        tar.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Architecture;

    fn lora() -> Lora {
        let module = |layer: usize, target: &str| LoraModule {
            name: format!("bert.encoder.layer.{layer}.attention.self.{target}"),
            inputs: 8,
            outputs: 6,
        };
        Lora {
            base: "base".into(),
            rank: 2,
            alpha: 4,
            targets: vec!["query".into(), "value".into()],
            layers: vec![1],
            modules: vec![module(1, "query"), module(1, "value")],
            hidden: 8,
            classes: 3,
        }
    }

    #[test]
    fn names_are_those_of_peft() {
        let layout = lora().layout();
        assert_eq!(layout.parameters(), 2 * (2 * 8 + 6 * 2) + 3 * 8 + 3);
        assert_eq!(layout.params[1].name, "base_model.model.bert.encoder.layer.1.attention.self.query.lora_B.weight");
        assert_eq!(layout.params[1].shape, [6, 2]);
        let config = lora().config();
        assert_eq!((config["r"].as_u64(), config["layers_to_transform"][0].as_u64()), (Some(2), Some(1)));
        let mut archive = tar::Archive::new(std::io::Cursor::new(lora().directory(b"values").unwrap()));
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, [CONFIG, FILE]);
    }

    #[test]
    fn what_makes_no_adapter_is_refused() {
        assert!(Architecture::Lora(lora()).validate().is_ok());
        let refused = |change: fn(&mut Lora)| {
            let mut other = lora();
            change(&mut other);
            Architecture::Lora(other).validate().unwrap_err().to_string()
        };
        assert!(refused(|l| l.modules.clear()).contains("at least one module"));
        assert!(refused(|l| l.targets = vec!["query".into()]).contains("one of the targets"));
        assert!(refused(|l| l.modules[1] = l.modules[0].clone()).contains("twice"));
        assert!(refused(|l| l.rank = 0).contains("at least 1"));
        assert!(refused(|l| l.classes = 1).contains("2 classes"));
        let mut other = lora();
        other.base = "another".into();
        assert_ne!(lora().name(), other.name());
    }
}
