//! Prints what the ruleset has: tables, chains with their rules, sets with the number of their elements.
//!
//! `cargo run -p nftables-rs --example list` (as root)

use nftables_rs::{Error, Family, Nftables, Part, TableName};

fn main() -> Result<(), Error> {
    let mut nft = Nftables::open()?;
    println!("# generation {}", nft.generation()?.0);
    let mut tables: Vec<(Family, String)> = Vec::new();
    nft.tables(None, &mut |part| match part {
        Part::Start => tables.clear(),
        Part::Item(listed) => tables.push((listed.table.name.family, listed.table.name.name.to_owned())),
    })?;
    for (family, name) in &tables {
        list(&mut nft, TableName::new(*family, name))?;
    }
    Ok(())
}

fn list(nft: &mut Nftables, table: TableName<'_>) -> Result<(), Error> {
    let (mut sets, mut chains, mut rules) = (Vec::new(), Vec::new(), Vec::new());
    nft.sets(table, &mut |part| match part {
        Part::Start => sets.clear(),
        Part::Item(listed) => sets.push((listed.name.to_owned(), listed.is_map())),
    })?;
    nft.chains(table, &mut |part| match part {
        Part::Start => chains.clear(),
        Part::Item(listed) => {
            let base =
                listed.chain.base.map(|base| format!(": {} {:?} {}", base.kind, base.hook, base.priority));
            chains.push((listed.chain.name.to_owned(), base.unwrap_or_default()));
        }
    })?;
    nft.rules(table, None, &mut |part| match part {
        Part::Start => rules.clear(),
        Part::Item(listed) => {
            let names = listed.expressions().map_while(Result::ok).map(|it| it.name().to_owned());
            rules.push((listed.chain.to_owned(), names.collect::<Vec<_>>().join(" ")));
        }
    })?;
    println!("table {table}");
    for (name, is_map) in sets {
        let mut elements = 0;
        nft.elements(table, &name, &mut |part| match part {
            Part::Start => elements = 0,
            Part::Item(_) => elements += 1,
        })?;
        println!("  {} {name}: {elements} elements", if is_map { "map" } else { "set" });
    }
    for (name, base) in chains {
        println!("  chain {name}{base}");
        rules.iter().filter(|(chain, _)| *chain == name).for_each(|(_, names)| println!("    {names}"));
    }
    Ok(())
}
