//! Training that was stopped goes on as if it never had been: same bundle, no step twice, none left out.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::Device;
use tempfile::TempDir;
use training::progress::{Observer, Progress, Report};
use training::stages::generator::{self, Trained};
use training::stages::zoo::{self, Zoo};
use training::{Config, Error, Folder, Keep, Result, Snapshots, Sources};

/// The tests' smallest configuration; the encoder learns along with the denoiser, so that stage has two learners.
fn config() -> Config {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/configs/tiny.toml");
    let text = std::fs::read_to_string(path).unwrap().replace("embedding_dim = 8", "embedding_dim = 8\njoint = 0.5");
    // And what is off unless asked for: a predictor, and quality as a condition.
    let text = text.replace("timesteps = 50", "timesteps = 50\nquality = true");
    Config::parse(&format!("{text}\n[predictor]\nsteps = 20\nexamples = 60\nwidth = 16\nbatch = 16\n")).unwrap()
}

/// Snapshots in memory.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

impl Snapshots for Memory {
    fn save(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.0.lock().unwrap().insert(name.into(), bytes.into());
        Ok(())
    }

    fn load(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(name).cloned())
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }
}

impl Memory {
    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }
}

/// Stops after a number of steps, and remembers what it was told.
#[derive(Default)]
struct Watch {
    cancel: Arc<AtomicBool>,
    left: AtomicUsize,
    reports: Mutex<Vec<Report>>,
    notes: Mutex<Vec<String>>,
}

impl Observer for Watch {
    fn report(&self, report: &Report) {
        self.reports.lock().unwrap().push(*report);
        // The report that a stage begins is no step.
        if report.loss.is_some() && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }

    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.into());
    }
}

impl Watch {
    fn after(steps: usize) -> (Arc<Self>, Progress) {
        let watch = Arc::new(Self { left: AtomicUsize::new(steps), ..Self::default() });
        let progress = Progress::new(false, watch.cancel.clone()).observed(watch.clone());
        (watch, progress)
    }

    /// Steps made, of each stage.
    fn steps(&self, stage: &str) -> Vec<usize> {
        let reports = self.reports.lock().unwrap();
        reports.iter().filter(|r| r.stage == stage && r.loss.is_some()).map(|r| r.step).collect()
    }
}

struct Given {
    config: Config,
    sources: Sources,
    zoo: Zoo,
    whole: Trained,
}

impl Given {
    fn train(&self, progress: &Progress, keep: Keep<'_>) -> Result<Trained> {
        generator::train(&self.config, &self.zoo, &self.sources, &Device::Cpu, progress, keep)
    }
}

/// A zoo, and the generator of a training that nothing disturbs.
fn given() -> &'static Given {
    static GIVEN: std::sync::OnceLock<Given> = std::sync::OnceLock::new();
    GIVEN.get_or_init(|| {
        let (config, folder, silent) = (config(), TempDir::new().unwrap(), Progress::silent());
        let sources = Sources::load(&config).unwrap();
        let zoo = zoo::build(&config, &sources, folder.path(), &silent, Keep::nothing()).unwrap();
        let whole = generator::train(&config, &zoo, &sources, &Device::Cpu, &silent, Keep::nothing()).unwrap();
        Given { config, sources, zoo, whole }
    })
}

const NEVER: Duration = Duration::from_secs(1 << 20);

#[test]
fn a_training_stopped_anywhere_ends_the_same() {
    let given = given();
    let curve = &given.whole.curve;
    let (vae, encoder, denoiser) = (curve[0].steps, curve[1].steps, curve[2].steps);
    assert_eq!((vae, encoder, denoiser), (40, 20, 40));
    // In each stage: at its first step, in it, before and at its end; and every few steps.
    for stops in [
        vec![1, 1, 1],
        vec![7, 20, 12, 1, 30],
        vec![vae - 1, 1, 1],
        vec![vae, encoder, denoiser],
        vec![vae + encoder + 17],
        vec![9; 11],
    ] {
        let place = Memory::default();
        let mut made: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut finished = None;
        for stop in stops.iter().copied().chain([usize::MAX]) {
            let (watch, progress) = Watch::after(stop);
            match given.train(&progress, Keep::new(&place, NEVER)) {
                Ok(trained) => finished = Some(trained),
                Err(Error::Interrupted) => assert!(stop < usize::MAX),
                Err(error) => panic!("{stops:?}: {error}"),
            }
            for stage in ["vae", "encoder", "denoiser", "predictor"] {
                made.entry(stage).or_default().extend(watch.steps(stage));
            }
        }
        let finished = finished.expect("the last part ends");
        for stage in curve {
            let all: Vec<usize> = (1..=stage.steps).collect();
            assert_eq!(made[stage.stage.as_str()], all, "{stops:?}: {} repeats or leaves out a step", stage.stage);
        }
        assert_eq!(finished.curve, *curve, "{stops:?}");
        assert_eq!(finished.bundle.digest(), given.whole.bundle.digest(), "{stops:?}");
        Keep::new(&place, NEVER).clear().unwrap();
        assert_eq!(place.names(), [""; 0]);
    }
}

#[test]
fn a_crash_loses_what_came_after_the_last_snapshot_and_no_more() {
    let given = given();
    // Not interrupted but broken off: the last snapshot is some steps old.
    for (every, last) in [(Duration::ZERO, 33), (NEVER, 60)] {
        let folder = TempDir::new().unwrap();
        let place = Folder::new(folder.path().join("snapshots"));
        let (watch, progress) = Watch::after(last);
        let crash = Broken { inner: &place, watch: watch.clone() };
        let _ = given.train(&progress, Keep::new(&crash, every)).unwrap_err();
        let (watch, progress) = Watch::after(usize::MAX);
        let trained = given.train(&progress, Keep::new(&place, every)).unwrap();
        assert_eq!(trained.bundle.digest(), given.whole.bundle.digest());
        assert_eq!(trained.curve, given.whole.curve);
        let (vae, encoder) = (watch.steps("vae"), watch.steps("encoder"));
        if every == NEVER {
            // The end of the VAE's stage was kept, that of the encoder's no more.
            assert_eq!((vae.len(), encoder), (0, (1..=20).collect::<Vec<_>>()));
        } else {
            assert!((2..=last + 1).contains(&vae[0]), "{vae:?}");
            assert_eq!(vae, (vae[0]..=40).collect::<Vec<_>>());
        }
    }
}

/// A place that keeps nothing any more once training is told to stop: as a process that is killed there.
struct Broken<'a> {
    inner: &'a Folder,
    watch: Arc<Watch>,
}

impl Snapshots for Broken<'_> {
    fn save(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.watch.cancel.load(Ordering::Relaxed) {
            return Err(Error::Snapshots("the disk is full; make room".into()));
        }
        self.inner.save(name, bytes)
    }

    fn load(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.inner.load(name)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.inner.remove(name)
    }
}

#[test]
fn generators_that_differ_after_the_vae_share_it() {
    let given = given();
    let (shared, silent) = (Memory::default(), Progress::silent());
    let train = |config: &Config, progress: &Progress| {
        let own = Memory::default();
        let keep = Keep::new(&own, NEVER).sharing(&shared);
        let made = generator::train(config, &given.zoo, &given.sources, &Device::Cpu, progress, keep).unwrap();
        keep.clear().unwrap();
        assert_eq!(own.names(), [""; 0]);
        made.bundle.digest()
    };
    assert_eq!(train(&given.config, &silent), given.whole.bundle.digest());
    assert_eq!(shared.names().len(), 1);
    let mut other = given.config.clone();
    other.encoder.steps += 1;
    other.diffusion.quality = false;
    let alone = generator::train(&other, &given.zoo, &given.sources, &Device::Cpu, &silent, Keep::nothing()).unwrap();
    let (watch, progress) = Watch::after(usize::MAX);
    assert_eq!(train(&other, &progress), alone.bundle.digest());
    assert_eq!((watch.steps("vae").len(), watch.steps("encoder").len()), (0, 21));
    // What the VAE itself depends on makes another.
    for change in
        [|c: &mut Config| c.vae.lr *= 2.0, |c: &mut Config| c.seed += 1, |c: &mut Config| c.vectors.held_out = 0.4]
    {
        let mut other = given.config.clone();
        change(&mut other);
        let (watch, progress) = Watch::after(1);
        let (own, before) = (Memory::default(), shared.names().len());
        let keep = Keep::new(&own, NEVER).sharing(&shared);
        let ended = generator::train(&other, &given.zoo, &given.sources, &Device::Cpu, &progress, keep);
        assert!(matches!(ended, Err(Error::Interrupted)) && watch.steps("vae") == [1]);
        assert_eq!(shared.names().len(), before + 1);
    }
}

#[test]
fn damaged_and_foreign_snapshots_are_passed_over() {
    let given = given();
    let place = Memory::default();
    // Two snapshots of the VAE: after 10 steps and after 15.
    for stop in [10, 5] {
        let (_, progress) = Watch::after(stop);
        assert!(matches!(given.train(&progress, Keep::new(&place, NEVER)), Err(Error::Interrupted)));
    }
    let whole = place.0.lock().unwrap().clone();
    assert_eq!(whole.len(), 2);
    let newest = "vae.1.snapshot";
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 5] = [
        ("cut off", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", |bytes| bytes.clear()),
        ("a bit is another", |bytes| {
            let at = bytes.len() - 100;
            bytes[at] ^= 1;
        }),
        ("the header", |bytes| bytes[3] ^= 1),
        ("text", |bytes| *bytes = b"no snapshot\n".to_vec()),
    ];
    for (what, change) in changes {
        for (both, first) in [(false, 11), (true, 1)] {
            *place.0.lock().unwrap() = whole.clone();
            for (name, bytes) in place.0.lock().unwrap().iter_mut() {
                if both || name == newest {
                    change(bytes);
                }
            }
            let (watch, progress) = Watch::after(3);
            assert!(matches!(given.train(&progress, Keep::new(&place, NEVER)), Err(Error::Interrupted)));
            assert_eq!(watch.steps("vae")[0], first, "{what}");
            let notes = watch.notes.lock().unwrap().clone();
            assert!(notes[0].contains("is passed over: it is"), "{what}: {notes:?}");
        }
    }
    // After damage the training still ends the same.
    let (_, progress) = Watch::after(usize::MAX);
    let digest = given.train(&progress, Keep::new(&place, NEVER)).unwrap().bundle.digest();
    assert_eq!(digest, given.whole.bundle.digest());

    // Snapshots of another configuration.
    *place.0.lock().unwrap() = whole.clone();
    let mut other = given.config.clone();
    other.vae.lr *= 2.0;
    let (watch, progress) = Watch::after(2);
    let keep = Keep::new(&place, NEVER);
    let ended = generator::train(&other, &given.zoo, &given.sources, &Device::Cpu, &progress, keep);
    assert!(matches!(ended, Err(Error::Interrupted)));
    assert_eq!(watch.steps("vae"), [1, 2]);
    assert!(watch.notes.lock().unwrap()[0].contains("another configuration"));
}

#[test]
fn a_zoo_stopped_inside_its_groups_ends_the_same() {
    let mut config = config();
    config.zoo.keep = 3;
    let sources = Sources::load(&config).unwrap();
    let whole = Memory::default();
    let expected = zoo::build_in(&config, &sources, &whole, &Progress::silent(), Keep::nothing()).unwrap();
    let store = Memory::default();
    let mut ended = None;
    // Group steps, of all groups together.
    for stop in [1, 30, 2, 100, 57, 44, usize::MAX] {
        let (_, progress) = Watch::after(stop);
        match zoo::build_in(&config, &sources, &store, &progress, Keep::new(&store, NEVER)) {
            Ok(zoo) => ended = Some(zoo),
            Err(Error::Interrupted) => {
                assert!(store.names().iter().any(|name| name.ends_with(".snapshot")), "{:?}", store.names());
            }
            Err(error) => panic!("{error}"),
        }
    }
    let ended = ended.unwrap();
    assert_eq!((&ended.digest, &ended.checkpoints), (&expected.digest, &expected.checkpoints));
    assert_eq!(*store.0.lock().unwrap(), *whole.0.lock().unwrap());
}

#[test]
fn the_bundle_holds_the_curve_and_progress_tells_it() {
    let given = given();
    let file = given.whole.bundle.file("training_curve.json").unwrap();
    let json: serde_json::Value = serde_json::from_slice(file).unwrap();
    let (watch, progress) = Watch::after(usize::MAX);
    given.train(&progress, Keep::nothing()).unwrap();
    let reports = watch.reports.lock().unwrap();
    for (stage, curve) in json["stages"].as_array().unwrap().iter().zip(&given.whole.curve) {
        let losses: Vec<f32> = stage["loss"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        assert_eq!((stage["stage"].as_str().unwrap(), &losses), (curve.stage.as_str(), &curve.loss));
        let told: Vec<f32> = reports.iter().filter(|r| r.stage == curve.stage).filter_map(|r| r.loss).collect();
        assert_eq!(told, curve.loss);
        assert!(curve.loss.iter().all(|loss| loss.is_finite()));
    }
    let last = reports.iter().rfind(|r| r.stage == "denoiser").unwrap();
    assert_eq!((last.step, last.steps, last.seconds_left), (40, 40, Some(0.0)));
    assert!(last.rate.unwrap() > 0.0);
}

#[test]
fn a_folder_is_one_process_and_leaves_no_halves() {
    let dir = TempDir::new().unwrap();
    let folder = Folder::new(dir.path().join("a/b"));
    assert_eq!(folder.load("x").unwrap(), None);
    folder.remove("x").unwrap();
    let lock = folder.lock().unwrap();
    let taken = folder.lock().unwrap_err();
    assert!(taken.code() == "snapshots_unavailable" && taken.to_string().contains("another process"), "{taken}");
    folder.save("x", b"one").unwrap();
    folder.save("x", b"two").unwrap();
    assert_eq!(folder.load("x").unwrap().unwrap(), b"two");
    assert!(folder.has("x").unwrap() && !folder.has("y").unwrap());
    // What a killed process left.
    std::fs::write(folder.path().join(".x.1.part"), b"ha").unwrap();
    drop(lock);
    drop(folder.lock().unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    folder.remove_empty();
    assert!(folder.path().exists());
    folder.remove("x").unwrap();
    folder.remove_empty();
    assert!(!folder.path().exists());
    // Where nothing can be written, that is what it says.
    let nowhere = Folder::new("/proc/none");
    assert_eq!(nowhere.save("x", b"").unwrap_err().code(), "io");
}
