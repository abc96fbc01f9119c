//! Writes every target's first inputs into a folder of its name below the folder given, and prints
//! the names of the targets.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let root = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()));
    for (name, _) in fuzz::TARGETS {
        let folder = root.join(name);
        std::fs::create_dir_all(&folder)?;
        for (index, seed) in fuzz::seeds::of(name)?.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index:03}")), seed)?;
        }
        println!("{name}");
    }
    Ok(())
}
