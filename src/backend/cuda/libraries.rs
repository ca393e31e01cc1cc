//! Where NVIDIA's libraries may lie: a configured folder, a toolkit, the wheels of the Python index,
//! PyTorch beside them.

use std::env;
use std::path::{Path, PathBuf};

/// A folder that holds the compiler's library, and the libraries in it, in the order in which they
/// are to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nvrtc {
    pub builtins: PathBuf,
    pub library: PathBuf,
}

/// NVRTC in `folder` or where it is usually found below it: a toolkit, a Python environment, its
/// packages.
pub(super) fn nvrtc_in(folder: &Path) -> Option<Nvrtc> {
    places(folder).iter().find_map(|place| nvrtc_at(place))
}

/// NVRTC where toolkits and Python environments of this machine usually lie.
pub(super) fn nvrtc_anywhere() -> Option<Nvrtc> {
    let named = ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"];
    let named = named.into_iter().filter_map(env::var_os).map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".local"));
    let usual = ["/usr/local/cuda", "/opt/cuda", "/usr/local", "/usr"].map(PathBuf::from);
    named.chain(home).chain(usual).find_map(|folder| nvrtc_in(&folder))
}

/// The folders of libraries below a folder.
fn places(folder: &Path) -> Vec<PathBuf> {
    let mut places = vec![folder.to_owned()];
    places.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|below| folder.join(below)));
    let mut packages = vec![folder.to_owned(), folder.join("lib/python3/dist-packages")];
    for python in entries(&folder.join("lib"), "python3.") {
        packages.extend(["site-packages", "dist-packages"].map(|below| python.join(below)));
    }
    for packages in packages {
        let wheels = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "torch/lib"];
        places.extend(wheels.map(|below| packages.join(below)));
    }
    places
}

fn nvrtc_at(place: &Path) -> Option<Nvrtc> {
    let library = entries(place, "libnvrtc.so").into_iter().next_back()?;
    let builtins = entries(place, "libnvrtc-builtins.so").into_iter().next_back()?;
    Some(Nvrtc { builtins, library })
}

/// What a folder holds whose name begins so, in the order of the names.
fn entries(folder: &Path, beginning: &str) -> Vec<PathBuf> {
    let named = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning))
    };
    let Ok(folder) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> =
        folder.filter_map(|entry| Some(entry.ok()?.path())).filter(named).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_is_found_in_wheels_environments_and_toolkits() {
        let folder = tempfile::tempdir().expect("a folder");
        for below in ["venv/lib/python3.11/site-packages/nvidia/cu13/lib", "cuda/lib64", "plain"] {
            let place = folder.path().join(below);
            std::fs::create_dir_all(&place).expect("a folder");
            assert_eq!(nvrtc_in(&folder.path().join(below.split('/').next().unwrap_or(""))), None);
            for name in ["libnvrtc.so.13", "libnvrtc-builtins.so.13.0"] {
                std::fs::write(place.join(name), "").expect("a file");
            }
            let top = folder.path().join(below.split('/').next().unwrap_or(""));
            let found = nvrtc_in(&top).expect("it is there");
            assert_eq!(found.library, place.join("libnvrtc.so.13"));
            assert_eq!(found.builtins, place.join("libnvrtc-builtins.so.13.0"));
        }
    }
}
